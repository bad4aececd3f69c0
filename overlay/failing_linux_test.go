package overlay

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const failingSync = 4 // each such step syncs, too

func failingWork(dir string, plan int) error {
	var a *answerLog
	return crashtest.Failing{
		Steps: crashInits, Faults: 4,
		Open: func() (err error) {
			if a != nil {
				a.close()
				a = nil
			}
			if err := disk.MakeDir(dir); err != nil {
				return err
			}
			if _, err := loadSecrets(dir, crashIdentity(), time.Unix(1e9, 0)); err != nil {
				return err
			}
			a, err = openAnswerLog(dir)
			return err
		},
		Do: func(i int) error {
			if i == crashStart {
				a.records = answeredMax
			}
			if err := a.note(crashMAC(i)); err != nil {
				return err
			}
			if i%failingSync == 0 {
				return a.sync()()
			}
			return nil
		},
	}.Run(plan)
}

func failingCheck(dir string, acked []int) error {
	a, err := openAnswerLog(dir)
	if err != nil {
		return err
	}
	defer a.close()
	synced := 0
	for i := 0; i < crashInits; i += failingSync {
		if done, _ := crashtest.Outcome(acked, i); done {
			synced = i
		}
	}
	for i := range synced {
		if done, _ := crashtest.Outcome(acked, i); done && !a.before(crashMAC(i)) {
			return fmt.Errorf("handshake %d, before the sync of step %d, would be answered again", i, synced)
		}
	}
	return nil
}

// TestHostileFailingDisk: single syncs and writes fail, and everything does for a while.
// After any restart or power failure the sealing key is the one that was there, and
// every handshake that was answered before a sync that succeeded is known.
func TestHostileFailingDisk(t *testing.T) {
	keys := map[int]crypto.SealPublic{}
	crashtest.Test{
		Work: func(dir string, plan int) error { return failingWork(filepath.Join(dir, "agent"), plan) },
		Check: func(dir string, plan int, acked []int) error {
			if len(acked) == 0 {
				return nil
			}
			dir = filepath.Join(dir, "agent")
			s, err := loadSecrets(dir, crashIdentity(), time.Unix(1e9, 0))
			if err != nil {
				return err
			}
			if key := s.seals[0].Public(); keys[plan] == (crypto.SealPublic{}) {
				keys[plan] = key
			} else if keys[plan] != key {
				return fmt.Errorf("the sealing key is another one")
			}
			return failingCheck(dir, acked)
		},
		Syncs: 5, Changes: crashInits / 2, Seeds: 20, Hostile: 4_000, Plans: 16,
	}.Run(t)
}
