package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/rendezvous"
)

// lose lets the server forget all, mailboxes first of all.
func (w *world) lose() {
	w.stop()
	w.store = rendezvous.NewMemoryStore()
	w.startServer()
}

// narrows changes what a peer may reach here.
func (a *agent) narrows(b *agent, ports string) {
	a.t.Helper()
	if _, err := a.Approve(timeout(a.t), ApproveOptions{Peer: b.ID().Fingerprint, Ports: &ports}); err != nil {
		a.t.Fatalf("%s narrows %s: %+v", a.cfg.Name, b.cfg.Name, err)
	}
	eventually(a.t, "the change is at the server", func() bool { return len(a.store.Outbox()) == 0 })
}

// The server loses a change of terms that waits for its reader. It is said again when both
// sides meet, and nobody has to do anything for it.
func TestTrustTermsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		alice.asks(bob, RequestOptions{Ports: "7,80,443", Offer: "7"})
		bob.approves(alice)
		agree(alice, bob)
		alice.stop()
		bob.narrows(alice, "7")
		w.lose()
		bob.registered()
		alice.start()
		alice.registered()
		passes(alice, bob)
		agree(alice, bob)
		if p := alice.peer("bob"); p.Out != "7" {
			t.Errorf("out %s", p.Out)
		}
	})
}

// The server loses the answer to a renewal: the next session, still under the old secrets,
// brings it.
func TestTrustGrantLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		was := alice.slots(bob)[0]
		alice.asks(bob, RequestOptions{Contact: "bob", Ports: "7,80", Offer: "7,22"})
		bob.waiting(1)
		alice.stop()
		bob.approves(alice)
		eventually(t, "the grant is at the server", func() bool { return len(bob.store.Outbox()) == 0 })
		w.lose()
		bob.registered()
		alice.start()
		alice.registered()
		passes(alice, bob)
		eventually(t, "the grant has come", func() bool { return len(alice.Outgoing()) == 0 })
		pass(5 * time.Minute) // no session is left: the next one is under the new secrets
		agree(alice, bob)
		if p := alice.peer("bob"); p.Out != "7,80" || p.In != "7,22" || alice.slots(bob)[0] == was {
			t.Errorf("%+v", p)
		}
	})
}

// A key is installed anew while its clock is an hour behind. The peer still holds what the
// lost state let it reach, under a higher serial: they find out when they meet.
func TestTrustReinstalledClockBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		pass(2 * time.Hour) // or her new card would be older than the one she had
		alice.asks(bob, RequestOptions{Ports: "7", Offer: "7,80"})
		bob.approves(alice)
		agree(alice, bob)
		alice.stop()
		alice.dir = t.TempDir()
		alice.cfg.StateDir = alice.dir
		alice.cfg.Clock = offClock{labClock{time.Now()}, -time.Hour}
		alice.start()
		alice.registered()
		alice.asks(bob, RequestOptions{Ports: "7", Offer: "7"})
		bob.approves(alice)
		eventually(t, "alice has her pair", func() bool { return len(alice.slots(bob)) == 1 })
		passes(alice, bob)
		agree(alice, bob)
		if p := bob.peer("alice"); p.Out != "7" {
			t.Errorf("out %s", p.Out)
		}
	})
}
