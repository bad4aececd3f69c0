package rendezvous_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const failingSteps = 80

// failingStep registers an agent anew, takes mail for it, or drops the mail of two
// steps ago.
func failingStep(s *rendezvous.BoltStore, ids []uint64, i int) error {
	a := crashAgent(byte(i%crashAgents), i+1)
	fp := a.Key.Fingerprint()
	switch i % 4 {
	case 0:
		return s.Register(a)
	case 3:
		to := crashAgent(byte((i-2)%crashAgents), 0).Key.Fingerprint()
		if ids[i-2] == 0 {
			return nil
		}
		return s.Ack(to, ids[i-2])
	}
	id, err := s.Put(fp, rendezvous.Mail{Received: time.UnixMilli(int64(i)), Bucket: 1, Body: failingBody(i)}, 1000)
	ids[i] = id
	if err != nil {
		ids[i] = 0
	}
	return err
}

func failingBody(i int) []byte { return fmt.Append(make([]byte, 100+i*37%3000), "mail", i, ".") }

func failingWork(dir string, plan int) error {
	dir = filepath.Join(dir, "server")
	var s *rendezvous.BoltStore
	ids := make([]uint64, failingSteps)
	return crashtest.Failing{
		Steps: failingSteps, Faults: 20,
		Open: func() (err error) {
			if s != nil {
				s.Close()
			}
			s = nil
			if _, err := rendezvous.LoadKey(dir); err != nil {
				return err
			}
			s, err = rendezvous.OpenBolt(filepath.Join(dir, "server.db"))
			return err
		},
		Do: func(i int) error { return failingStep(s, ids, i) },
	}.Run(plan)
}

func failingCheck(dir string, acked []int) error {
	s, err := rendezvous.OpenBolt(filepath.Join(dir, "server", "server.db"))
	if err != nil {
		if len(acked) == 0 {
			return nil // there need not be a directory
		}
		return err
	}
	defer s.Close()
	for n := range crashAgents {
		fp := crypto.PublicKey{byte(n), 1}.Fingerprint()
		least, most := 0, 0
		want, may := map[int]bool{}, map[int]bool{}
		for i := range failingSteps {
			done, some := crashtest.Outcome(acked, i)
			switch {
			case i%4 == 0 && i%crashAgents == n:
				if done {
					least = i + 1
				}
				if some {
					most = i + 1
				}
			case i%4 == 3 && (i-2)%crashAgents == n:
				if some {
					want[i-2] = false
				}
				if done && may[i-2] && acked[i-2+1]%2 == 0 {
					may[i-2] = false
				}
			case i%4 != 0 && i%4 != 3 && i%crashAgents == n:
				want[i], may[i] = done, some
			}
		}
		a, err := s.Agent(fp)
		if err != nil && (!errors.Is(err, rendezvous.ErrNotFound) || least > 0) {
			return fmt.Errorf("agent %d: %w", n, err)
		}
		if got := int(a.ClaimSerial); got < least || got > most {
			return fmt.Errorf("agent %d has the claim %d, want one from %d to %d", n, got, least, most)
		}
		box, err := s.Mail(fp, 0, 1000)
		if err != nil {
			return err
		}
		seen := map[int]bool{}
		for _, m := range box {
			i := int(m.Received.UnixMilli())
			if !may[i] || seen[i] || !bytes.Equal(m.Body, failingBody(i)) {
				return fmt.Errorf("mail %d of agent %d should not be there (again)", i, n)
			}
			seen[i] = true
		}
		for i, must := range want {
			if must && !seen[i] {
				return fmt.Errorf("mail %d of agent %d is lost", i, n)
			}
		}
	}
	return s.Register(crashAgent(1, 1000))
}

// TestHostileFailingDisk: single syncs and writes fail, and everything does for a while.
// After any restart or power failure the server's store can be opened and holds what
// was acknowledged to agents and visitors, and the key is the same.
func TestHostileFailingDisk(t *testing.T) {
	keys := map[int]crypto.DHPrivate{}
	crashtest.Test{
		Work: failingWork,
		Check: func(dir string, plan int, acked []int) error {
			got, err := rendezvous.LoadKey(filepath.Join(dir, "server"))
			if len(acked) > 0 {
				if keys[plan].IsZero() {
					keys[plan] = got
				}
				if err != nil || got != keys[plan] {
					return fmt.Errorf("the key is not the one that agents know, %v", err)
				}
			}
			return failingCheck(dir, acked)
		},
		Syncs: failingSteps / 2, Changes: failingSteps, Seeds: 30, Hostile: 10_000, Plans: 20,
	}.Run(t)
}
