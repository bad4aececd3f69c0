package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// relayOf is the server that carries what a sends to the peer; nil if it goes
// directly.
func (a *agent) relayOf(peer string, servers ...*world) (at *world) {
	a.call(func(instant) {
		for _, k := range a.loop.links {
			tx := k.peer.tx.Load()
			if k.book.Name != peer || tx == nil || !tx.path.Relayed() {
				continue
			}
			for _, s := range servers {
				if tx.path.Remote.Addr() == s.server.Addr() {
					at = s
				}
			}
		}
	})
	return at
}

// The server that relays dies under traffic, without a word or with the kernel's
// refusals; the other one carries on within a second. Where the pair is direct
// nothing is lost.
func TestRelayDies(t *testing.T) {
	for _, c := range []struct {
		name   string
		a, b   natlab.Kind
		silent bool
		both   bool // alice has two servers; else bob only
	}{
		{"sym-sym cut", natlab.Sym, natlab.Sym, true, true},
		{"sym-sym killed", natlab.Sym, natlab.Sym, false, true},
		{"sym-sym cut, one side has one server", natlab.Sym, natlab.Sym, true, false},
		{"linux-linux cut", natlab.Linux, natlab.Linux, true, true},
		{"linux-linux killed", natlab.Linux, natlab.Linux, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				x := w.another()
				defer func() { x.stop() }() // it is started anew
				alice, bob := w.agent("alice", c.a), w.agent("bob", c.b)
				bob.homes(w, x)
				if c.both {
					alice.homes(w, x)
				}
				w.befriend(alice, bob, "7", "7")
				known(t, alice, bob)
				if c.a != natlab.Sym {
					alice.pathTo("bob", "direct")
				}
				for _, pair := range [][2]*agent{{alice, bob}, {bob, alice}} {
					done := make(chan result)
					go func() { done <- stream(pair[0], pair[1], 1500, 10*time.Millisecond) }()
					pass(3 * time.Second)
					died := w
					if at := pair[0].relayOf(pair[1].cfg.Name, w, x); at != nil {
						died = at
					} else if c.a == natlab.Sym {
						t.Fatal("not on a relay")
					}
					if c.silent {
						w.net.Cut(died.server, nil)
					} else {
						died.stop()
					}
					r := <-done
					t.Logf("%s to %s: %+v", pair[0].cfg.Name, pair[1].cfg.Name, r)
					if r.gap > time.Second || r.twice != 0 {
						t.Errorf("%+v", r)
					}
					if c.a != natlab.Sym && r.lost != 0 {
						t.Errorf("direct, and lost %d", r.lost)
					}
					if at := pair[0].relayOf(pair[1].cfg.Name, w, x); c.a == natlab.Sym && (at == nil || at == died) {
						t.Errorf("still by the server that died, or none")
					}
					if c.silent {
						w.net.Uncut(died.server, nil)
					} else {
						died.startServer()
					}
					eventually(t, "registered everywhere again", func() bool {
						for _, a := range []*agent{alice, bob} {
							for _, s := range a.Status().Servers {
								if s.State != "registered" {
									return false
								}
							}
						}
						return true
					})
				}
			})
		})
	}
}

// A card names every home server, and a peer that only knew one of them before
// reaches the agent by the other.
func TestCardNamesServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		x := w.another()
		defer x.stop()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		bob.homes(w, x)
		w.befriend(alice, bob, "7", "7")
		known(t, alice, bob)
		w.net.Cut(w.server, nil)
		pass(10 * time.Minute) // no session and no path is left of befriending
		began := time.Now()
		r := stream(alice, bob, 200, 10*time.Millisecond)
		t.Logf("by the other server: %+v, %v", r, time.Since(began))
		if r.lost != 0 || r.gap > 500*time.Millisecond {
			t.Errorf("%+v", r)
		}
		var path natt.Path
		alice.call(func(instant) {
			for _, k := range alice.loop.links {
				if len(k.legs) != 2 {
					t.Errorf("%d ways to bob", len(k.legs))
				}
				path = k.use.Path
			}
		})
		t.Log(path)
	})
}
