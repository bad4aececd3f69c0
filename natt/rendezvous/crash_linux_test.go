package rendezvous_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust/crashtest"
)

// A crashStep is one change of the server's store.
type crashStep struct {
	what   string
	agent  byte
	number int
}

const crashAgents = 5

// crashPlan is the same in the traced process and in the test.
func crashPlan(arg int) (plan []crashStep) {
	rng := rand.New(rand.NewPCG(uint64(arg), 4))
	kinds := []string{"register", "register", "put", "put", "put", "put", "ack", "expire", "reopen"}
	for i := range 80 {
		plan = append(plan, crashStep{kinds[rng.IntN(len(kinds))], byte(rng.IntN(crashAgents)), i})
	}
	return plan
}

func crashAgent(n byte, serial int) rendezvous.Agent {
	return rendezvous.Agent{
		Key: crypto.PublicKey{n, 1}, Addr: [6]byte{0, 0, 0, 0, 1, n}, ClaimSerial: uint64(serial), CardSerial: uint64(serial),
		Claim: fmt.Append(make([]byte, 150), n, serial), Card: fmt.Append(make([]byte, 1500), n, serial),
	}
}

func (c crashStep) apply(s rendezvous.Store) error {
	a := crashAgent(c.agent, c.number+1)
	fp := a.Key.Fingerprint()
	switch c.what {
	case "register":
		return s.Register(a)
	case "put":
		_, err := s.Put(fp, rendezvous.Mail{
			Received: time.UnixMilli(int64(c.number)), Bucket: uint32(c.number % 3),
			Body: fmt.Append(make([]byte, 100+c.number*37%3000), c.number),
		}, 4)
		return err
	case "ack":
		box, err := s.Mail(fp, 0, 1)
		if err == nil && len(box) > 0 {
			err = s.Ack(fp, box[0].ID)
		}
		return err
	case "expire":
		_, err := s.Expire(time.UnixMilli(int64(c.number - 30)))
		return err
	}
	return nil
}

// crashContent is all that a store says of the agents and their mail.
func crashContent(s rendezvous.Store) (string, error) {
	text := ""
	for n := range byte(crashAgents) {
		a, err := s.Agent(crypto.PublicKey{n, 1}.Fingerprint())
		if err != nil && !errors.Is(err, rendezvous.ErrNotFound) {
			return "", err
		}
		text += fmt.Sprintf("agent %d: %x %x\n", n, a.Claim, a.Card)
		box, err := s.Mail(crypto.PublicKey{n, 1}.Fingerprint(), 0, 100)
		if err != nil {
			return "", err
		}
		for _, m := range box {
			text += fmt.Sprintf("%d %d %x\n", m.Received.UnixMilli(), m.Bucket, m.Body)
		}
	}
	return text, nil
}

func crashWork(dir string, plan []crashStep) error {
	dir = filepath.Join(dir, "server") // made by the server
	if _, err := rendezvous.LoadKey(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, "server.db")
	s, err := rendezvous.OpenBolt(path)
	if err != nil {
		return err
	}
	crashtest.Ack(0)
	for i, step := range plan {
		if step.what == "reopen" {
			if err := s.Close(); err != nil {
				return err
			}
			if s, err = rendezvous.OpenBolt(path); err != nil {
				return err
			}
		}
		if err := step.apply(s); err != nil {
			return err
		}
		crashtest.Ack(i + 1)
	}
	return s.Close()
}

// TestHostilePowerFailure: whenever the power fails, and whatever of the unsynced
// bytes and names survives, the server's store can be opened and holds all that was
// acknowledged to agents and visitors; it also has the key that they know.
func TestHostilePowerFailure(t *testing.T) {
	keys := map[int]crypto.DHPrivate{}
	states := map[int][]string{}
	crashtest.Test{
		Work: func(dir string, plan int) error { return crashWork(dir, crashPlan(plan)) },
		Check: func(dir string, plan int, acked []int) error {
			if states[plan] == nil {
				var err error
				if states[plan], err = crashStates(crashPlan(plan)); err != nil {
					return err
				}
			}
			dir = filepath.Join(dir, "server")
			got, err := rendezvous.LoadKey(dir)
			if len(acked) == 0 {
				return err // it may be a new one: nobody knows the old one yet
			}
			if keys[plan].IsZero() {
				keys[plan] = got
			}
			if err != nil || got != keys[plan] {
				return fmt.Errorf("the key is not the one that agents know, %v", err)
			}
			return crashCheck(filepath.Join(dir, "server.db"), states[plan], len(acked))
		},
		Syncs: 100, Changes: 150, Seeds: 60, Hostile: 10_000, Plans: 20,
	}.Run(t)
}

// crashStates is what a store holds that never fails: before the plan, and after
// each of its steps.
func crashStates(plan []crashStep) ([]string, error) {
	memory, states := rendezvous.NewMemoryStore(), []string{""}
	for _, step := range append([]crashStep{{}}, plan...) {
		if err := step.apply(memory); err != nil {
			return nil, err
		}
		text, err := crashContent(memory)
		if err != nil {
			return nil, err
		}
		states = append(states, text)
	}
	return states, nil
}

func crashCheck(path string, states []string, acked int) error {
	s, err := rendezvous.OpenBolt(path)
	if err != nil {
		return err
	}
	defer s.Close()
	text, err := crashContent(s)
	if err == nil && text != states[acked] && text != states[min(acked+1, len(states)-1)] {
		err = errors.New("the store holds neither what was acknowledged nor that and the step under way")
	}
	return errors.Join(err, crashStep{"put", 1, 1000}.apply(s))
}
