package overlay

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
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

// direct reports whether two agents see each other directly.
func direct(a, b *agent) bool {
	return a.peer(b.cfg.Name).Path == "direct" && b.peer(a.cfg.Name).Path == "direct"
}

// untilMet sends from a to b until they see each other directly. A search of the ports
// of a hard NAT is a matter of chance: it ends within six seconds and finds nothing once
// in 3,000 times, and the next one begins after 22 seconds.
func untilMet(t *testing.T, a, b *agent) {
	t.Helper()
	eventually(t, "a direct path", func() bool {
		a.send(b, 0, 64)
		return direct(a, b)
	})
	for {
		if _, err := b.receive(time.Second); err != nil {
			return
		}
	}
}

// withLuck runs what needs a search to find something in bubbles of its own, until f
// says that one did.
func withLuck(t *testing.T, f func(t *testing.T) bool) {
	t.Helper()
	for met, tries := false, 0; !met; tries++ {
		if tries == 3 {
			t.Fatal("three searches found nothing")
		}
		synctest.Test(t, func(t *testing.T) { met = f(t) })
	}
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
		untilMet(t, alice, bob)
		least := 1
		if endpoint(t, alice).Socket == 0 { // chance: bob has hit what the router keeps for the main one
			least = 0
		}
		if n := alice.opened(); most != 256 || n < least || n > 2 || bob.opened() != 0 {
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

// untilDirect streams and returns how long it took until both sides were direct, at most d.
func untilDirect(t *testing.T, a, b *agent, d time.Duration) (time.Duration, bool) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stream(a, b, int(d/(10*time.Millisecond)), 10*time.Millisecond)
	}()
	start := time.Now()
	took, ok := d, false
	for time.Since(start) < d && !ok {
		pass(10 * time.Millisecond)
		if direct(a, b) {
			took, ok = time.Since(start), true
		}
	}
	<-done
	return took, ok
}

// Two NATs that count are met by what they will count next, also where other flows come in between.
func TestBothCount(t *testing.T) {
	for name, noise := range map[string]int{"quiet": 0, "noisy": 4} {
		t.Run(name, func(t *testing.T) {
			met, within := 0, 0
			const runs = 5
			for seed := range runs {
				synctest.Test(t, func(t *testing.T) {
					w := newWorldWith(t, true)
					defer w.close()
					alice, bob := w.agent("alice", natlab.SymSeq), w.agent("bob", natlab.SymSeq)
					w.befriend(alice, bob, "7", "7")
					known(t, alice, bob)
					pass(time.Duration(seed) * 7 * time.Millisecond)
					stop := make(chan struct{})
					for _, a := range []*agent{alice, bob} {
						go func() {
							for i := 0; noise > 0; i++ {
								select {
								case <-stop:
									return
								case <-time.After(time.Second / time.Duration(noise) / 10):
								}
								c := a.host.Listen(0)
								_, _ = c.WriteBatch([]natt.Message{{Buf: []byte("x"), Addr: netip.AddrPortFrom(w.server.Addr(), uint16(5000+i))}})
								c.Close()
							}
						}()
					}
					took, ok := untilDirect(t, alice, bob, 3*time.Second)
					close(stop)
					if ok {
						met++
					}
					if took <= time.Second {
						within++
					}
					t.Logf("direct %v after %v; %s", ok, took, alice.peer("bob").WhyNot)
					if n := alice.opened() + bob.opened(); n > 4 {
						t.Errorf("%d sockets stay open", n)
					}
				})
			}
			if met < runs || noise == 0 && within < runs*4/5 {
				t.Errorf("%d of %d direct, %d within a second", met, runs, within)
			}
		})
	}
}
