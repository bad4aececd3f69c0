package overlay

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A journal is what an agent's operator can read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

// says whether one line holds all the words.
func (j *journal) says(words ...string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

func (a *agent) takes(token string) {
	a.t.Helper()
	if _, err := a.Accept(timeout(a.t), token, "", "7"); err != nil {
		a.t.Fatal(err)
	}
}

// An invite works once. Its guest gains nothing by a second use, another key waits as any
// stranger does, and the operator reads who used it first and who came second, also after
// a restart.
func TestTrustInviteTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		var log journal
		alice, carol := w.agentWith("alice", nil), w.agentWith("carol", nil)
		bob := w.agentWith("bob", func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		token, err := bob.Invite(timeout(t), InviteOptions{Ports: "7", TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		alice.takes(token)
		agree(alice, bob)
		alice.takes(token)
		pass(10 * time.Second)
		if p := bob.peer("alice"); p.In != "7" || p.Out != "7" {
			t.Errorf("a second use changed what alice may: %+v", p)
		}
		bob.stop()
		bob.start()
		carol.takes(token)
		eventually(t, "another key's use waits", func() bool {
			for _, r := range bob.Pending() {
				if r.Fingerprint == carol.ID().Fingerprint {
					return true
				}
			}
			return false
		})
		apart(carol, bob)
		if !log.says("invite used again", alice.key().String(), carol.ID().Fingerprint) {
			t.Errorf("no word of the second use: %s", log.text.String())
		}
		list := bob.Invites()
		if len(list) != 1 || list[0].State != "used" || len(list[0].Used) != 1 || list[0].Used[0].Name != "alice" {
			t.Errorf("invites: %+v", list)
		}
		passes(alice, bob)
		passes(bob, alice)
	})
}

// An invite that names its guest is of no use to a thief. One that does not lets the
// thief in, once, and the guest's own use tells both that it was stolen.
func TestTrustInviteStolen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		mallory := w.agentWith("mallory", nil)
		bound, err := bob.Invite(timeout(t), InviteOptions{Ports: "7", TTL: time.Hour, For: alice.ID().Fingerprint})
		if err != nil {
			t.Fatal(err)
		}
		mallory.takes(bound)
		bob.waiting(1)
		apart(mallory, bob)
		alice.takes(bound)
		agree(alice, bob)
		if err := bob.Reject(timeout(t), "mallory"); err != nil {
			t.Fatal(err)
		}
		if err := bob.Revoke(timeout(t), "alice"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "alice hears of it", func() bool { return len(alice.Peers()) == 0 })

		open, err := bob.Invite(timeout(t), InviteOptions{Ports: "7", TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		mallory.takes(open)
		agree(mallory, bob)
		alice.takes(open)
		bob.waiting(1)
		apart(alice, bob)
		if err := bob.Block(timeout(t), "mallory"); err != nil {
			t.Fatal(err)
		}
		bob.approves(alice)
		agree(alice, bob)
		apart(mallory, bob)
	})
}
