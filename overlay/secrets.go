package overlay

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// sealFile holds the agent's HPKE sealing keys: a line each, "unix seconds
// made, seed in base32", newest first. Old keys are kept 30 days for mail that
// was sealed to an older card.
const sealFile = "seal.key"

// secrets are the agent's own keys apart from its identity, and the card that
// publishes them.
type secrets struct {
	registration crypto.DHPrivate
	seals        []crypto.SealPrivate

	mu     sync.Mutex
	signed []byte
}

// card returns the signed card.
func (s *secrets) card() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signed
}

const sealKept = 30 * 24 * time.Hour

// loadSecrets reads or makes the keys. The registration key follows from the
// identity, so that it moves with it; the sealing key does not, so that a lost
// state does not open old mail.
func loadSecrets(dir string, id ipam.Identity, now time.Time) (*secrets, error) {
	seed := id.Key.Seed()
	reg, err := hkdf.Key(sha256.New, seed[:], nil, "pilot registration v1", 32)
	if err != nil {
		return nil, fmt.Errorf("overlay: registration key: %w", err)
	}
	s := &secrets{registration: crypto.DHPrivate(reg)}
	path := filepath.Join(dir, sealFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = newSealFile(path, now)
	} else if err == nil {
		err = disk.Named(path)
	}
	if err != nil {
		return nil, fmt.Errorf("overlay: sealing key: %w", err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		at, text, _ := strings.Cut(line, " ")
		sec, err1 := strconv.ParseInt(at, 10, 64)
		key, err2 := sealText.DecodeString(strings.TrimSpace(text))
		if err1 != nil || err2 != nil || len(key) != 32 {
			return nil, fmt.Errorf("overlay: %s: line %d is damaged; restore the file from a backup, or move it away: "+
				"a new sealing key is made and mail sealed to the old one is lost", path, i+1)
		}
		if i > 0 && now.Sub(time.Unix(sec, 0)) > sealKept {
			continue
		}
		k, err := crypto.NewSealPrivate([32]byte(key))
		if err != nil {
			return nil, fmt.Errorf("overlay: %s: line %d: %w", path, i+1, err)
		}
		s.seals = append(s.seals, k)
	}
	return s, nil
}

var sealText = base32.StdEncoding.WithPadding(base32.NoPadding)

func newSealFile(path string, now time.Time) ([]byte, error) {
	var seed [32]byte
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(seed[:])
	b := fmt.Appendf(nil, "%d %s\n", now.Unix(), sealText.EncodeToString(seed[:]))
	return b, disk.Create(path, b)
}

// metaStore is the small durable state that the node keeps in the trust store.
type metaStore interface {
	GetMeta(key string) ([]byte, bool)
	PutMeta(key string, value []byte) error
}

// makeCard signs the card. Its serial goes up only when what it says changed,
// so that a restart shows servers the card that they have.
func (s *secrets) makeCard(id ipam.Identity, servers []crypto.Server, meta metaStore, now time.Time) error {
	c := crypto.Card{
		Key: id.Key.Public(), Counter: id.Counter, Seal: s.seals[0].Public(),
		Registration: s.registration.Public(), Servers: servers,
	}
	gone := withdrawnUpTo(meta)
	if old, ok := meta.GetMeta("card"); ok {
		if was, err := crypto.ParseCard(old); err == nil {
			c.Serial = was.Serial
			if same, err := c.Sign(id.Key); err == nil && string(same) == string(old) && was.Serial > gone {
				s.signed = old
				return nil
			}
		}
	}
	c.Serial = max(c.Serial+1, gone+1, uint64(max(now.UnixMilli(), 1)))
	b, err := c.Sign(id.Key)
	if err != nil {
		return fmt.Errorf("overlay: sign card: %w", err)
	}
	if err := meta.PutMeta("card", b); err != nil {
		return fmt.Errorf("overlay: store card: %w", err)
	}
	s.signed = b
	return nil
}
