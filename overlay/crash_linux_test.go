package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services/disk"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const (
	crashInits = 60 // handshakes that are answered; every fifth time they are synced
	crashStart = crashInits / 3
)

func crashMAC(i int) (mac [16]byte) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
	copy(mac[:], sum[:])
	return mac
}

func crashIdentity() ipam.Identity {
	return ipam.Identity{Key: crypto.NewPrivateKey(sha256.Sum256([]byte("crash")))}
}

// crashWork makes the keys of an agent and answers handshakes; a third of the way
// the file of those is full.
func crashWork(t *testing.T, dir string) {
	if err := disk.MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSecrets(dir, crashIdentity(), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	crashtest.Ack(0)
	a, err := openAnswerLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	noted := 0
	for i := 1; i <= crashInits; i++ {
		if i == crashStart {
			a.records = answeredMax
		}
		if err := a.note(crashMAC(i)); err != nil {
			t.Fatal(err)
		}
		if i%5 != 0 {
			continue
		}
		if err := a.sync()(); err != nil {
			t.Fatal(err)
		}
		for noted < i {
			noted++
			crashtest.Ack(noted)
		}
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

// TestHostilePowerFailure: whenever the power fails, the agent finds the sealing
// key that its card names, and every handshake that was answered and synced is
// known.
func TestHostilePowerFailure(t *testing.T) {
	var key crypto.SealPublic
	check := func(dir string, _ int, acked []int) error {
		dir = filepath.Join(dir, "agent")
		if err := disk.MakeDir(dir); err != nil {
			return err
		}
		s, err := loadSecrets(dir, crashIdentity(), time.Unix(1e9, 0))
		if err != nil || len(acked) == 0 {
			return err
		}
		if key == (crypto.SealPublic{}) {
			key = s.seals[0].Public()
		}
		if s.seals[0].Public() != key {
			return fmt.Errorf("the sealing key is another one")
		}
		a, err := openAnswerLog(dir)
		if err != nil {
			return err
		}
		defer a.close()
		for _, i := range acked[1:] {
			if !a.before(crashMAC(i)) {
				return fmt.Errorf("handshake %d would be answered again", i)
			}
		}
		return nil
	}
	work := func(dir string, _ int) error { crashWork(t, filepath.Join(dir, "agent")); return nil }
	crashtest.Test{Work: work, Check: check, Syncs: crashInits / 5, Changes: crashInits, Seeds: 30, Hostile: 10_000}.Run(t)
}
