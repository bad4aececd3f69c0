package overlay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// opened is how many sockets an agent has besides the main one.
func (a *agent) opened() (n int) {
	for _, s := range a.plane.snapshot.Load().sockets {
		if s != nil {
			n++
		}
	}
	return n
}

// known waits until two agents know each other.
func known(t *testing.T, a, b *agent) {
	eventually(t, "both know each other", func() bool {
		return a.plane.snapshot.Load().peers[b.cfg.Identity.Node] != nil && b.plane.snapshot.Load().peers[a.cfg.Identity.Node] != nil
	})
}

// A search for a path through a hard NAT leaves the socket that won, and none
// after the peer is gone.
func TestPoolCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Sym), w.agent("bob", natlab.Port)
		w.befriend(alice, bob, "7", "7")
		known(t, alice, bob)
		most := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 500 {
				most = max(most, alice.opened())
				pass(20 * time.Millisecond)
			}
		}()
		if r := stream(alice, bob, 2000, 5*time.Millisecond); r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
		<-done
		if p := alice.peer("bob"); p.Path != "direct" {
			t.Errorf("path %s: %s", p.Path, p.WhyNot)
		}
		if n := alice.opened(); most != 256 || n < 1 || n > 2 || bob.opened() != 0 {
			t.Errorf("at most %d sockets, then %d; the other side has %d", most, n, bob.opened())
		}
		if err := alice.Revoke(context.Background(), "bob"); err != nil {
			t.Fatal(err)
		}
		if n := alice.opened(); n != 0 {
			t.Errorf("%d sockets after revoking", n)
		}
	})
}

// A search that finds nothing closes all sockets, sends no more probes than it
// may, and is not repeated at once. One that a shutdown ends leaves nothing: the
// bubble would not end.
func TestPoolInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Sym), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		known(t, alice, bob)
		w.net.CutUDP(alice.router, bob.router)
		before := bob.host.Counts().Sent
		if r := stream(alice, bob, 900, 10*time.Millisecond); r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
		if n := alice.opened(); n != 0 {
			t.Errorf("%d sockets after a search in vain", n)
		}
		if n := bob.host.Counts().Sent - before; n < 2048 || n > 2048+300 {
			t.Errorf("%d datagrams", n)
		}
		t.Log(alice.peer("bob").WhyNot)
		t.Log(bob.peer("alice").WhyNot)
		again := make(chan result)
		go func() { again <- stream(alice, bob, 3000, 10*time.Millisecond) }()
		eventually(t, "the second search begins", func() bool { return alice.opened() > 200 })
		<-again
	})
}
