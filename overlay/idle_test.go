package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/rendezvous"
)

// another starts a second server, which knows nothing of the first.
func (w *world) another() *world {
	w.t.Helper()
	o := &world{t: w.t, net: w.net, server: w.net.Host("another"), dir: w.t.TempDir(), store: rendezvous.NewMemoryStore()}
	var err error
	if o.key, err = crypto.GenerateDH(); err != nil {
		w.t.Fatal(err)
	}
	o.startServer()
	return o
}

// homes starts an agent anew with these servers.
func (a *agent) homes(servers ...*world) {
	a.t.Helper()
	a.stop()
	a.cfg.Servers = nil
	for _, s := range servers {
		a.cfg.Servers = append(a.cfg.Servers, s.serverRef())
	}
	a.start()
	eventually(a.t, a.cfg.Name+" registers everywhere", func() bool {
		for _, s := range a.Status().Servers {
			if s.State != "registered" || !s.Claimed {
				return false
			}
		}
		return true
	})
}

// A meter counts the datagrams that a host sends, by where to.
type meter struct {
	mu   sync.Mutex
	sent map[netip.AddrPort]int
}

// measure replaces what Observe was given before.
func (w *world) measure(a *agent) *meter {
	m := &meter{sent: map[netip.AddrPort]int{}}
	w.net.Observe(func(e natlab.Event) {
		if e.Kind == natlab.Sent && e.Sender == a.host {
			m.mu.Lock()
			m.sent[e.To]++
			m.mu.Unlock()
		}
	})
	return m
}

// take returns what was counted, to the servers and to others, and begins anew.
func (m *meter) take(servers ...*world) (home, other int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for to, n := range m.sent {
		of := &other
		for _, s := range servers {
			if to.Addr() == s.server.Addr() {
				of = &home
			}
		}
		*of += n
	}
	m.sent = map[netip.AddrPort]int{}
	return home, other
}

// An idle agent with two servers sends at most 15 packets in any minute, at most 10
// once it knows how long its NAT keeps mappings, and none to peers that nobody talks
// to. Whoever calls after that loses nothing.
func TestIdle(t *testing.T) {
	for _, c := range []struct {
		kind     natlab.Kind
		lifetime time.Duration
		beat     float64 // seconds
	}{
		{natlab.Linux, 30 * time.Second, 22.4}, {natlab.Port, 30 * time.Second, 22.4}, {natlab.Sym, 30 * time.Second, 22.4},
		{natlab.Firewall, 30 * time.Second, 22.4}, {natlab.Docker, time.Minute, 45.6}, {natlab.Full, 2 * time.Minute, 92},
		{natlab.None, time.Hour, 120},
	} {
		t.Run(fmt.Sprint(c.kind, c.lifetime), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				x := w.another()
				defer x.stop()
				alice, bob := w.agent("alice", c.kind), w.agent("bob", natlab.Linux)
				alice.router.SetTimeout(c.lifetime)
				alice.homes(w, x)
				w.befriend(bob, alice, "7", "7")
				if r := stream(bob, alice, 100, 20*time.Millisecond); r.lost != 0 {
					t.Fatalf("%+v", r)
				}
				pass(4 * time.Minute) // a path that was used is kept for three
				alice.call(func(now instant) { alice.loop.restartLifetime(now) })
				m := w.measure(alice)
				most, known, sum, minutes := 0, 0, 0, 0
				for minute := range 16 {
					s := alice.Status().Lifetime
					pass(time.Minute)
					home, other := m.take(w, x)
					if other != 0 {
						t.Errorf("minute %d: %d packets to idle peers", minute, other)
					}
					if s.State == "known" {
						known = max(known, home)
						sum, minutes = sum+home, minutes+1
					} else {
						most = max(most, home)
					}
				}
				s := alice.Status().Lifetime
				t.Logf("%+v; at most %d packets a minute before, %d after, %.1f on average", s, most, known, float64(sum)/float64(minutes))
				if s.State != "known" || s.Beat != c.beat || s.AtLeast >= c.lifetime.Seconds() {
					t.Errorf("%+v", s)
				}
				if most > 15 || known > 10 || known == 0 {
					t.Errorf("%d packets a minute before, %d after", most, known)
				}
				started := time.Now()
				bob.send(alice, 0, 64)
				if _, err := alice.receive(time.Second); err != nil || time.Since(started) > 200*time.Millisecond {
					t.Errorf("first packet after %v: %v", time.Since(started), err)
				}
				t.Logf("first packet after %v", time.Since(started))
				if r := stream(bob, alice, 100, 20*time.Millisecond); r.lost != 0 || r.twice != 0 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// A NAT that keeps mappings shorter than it did is found out, and so is one that
// changes them under a session; then packets are sent as at first.
func TestLifetimeGetsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		alice.registered()
		known := func() bool { return alice.Status().Lifetime.State == "known" }
		beat := func() float64 { return alice.Status().Lifetime.Beat }
		pass(9 * time.Minute)
		if !known() || beat() != 92 {
			t.Fatalf("%+v", alice.Status().Lifetime)
		}
		alice.router.SetTimeout(40 * time.Second)
		since := time.Now()
		for beat() > 28 && time.Since(since) < time.Hour {
			pass(time.Second)
		}
		t.Logf("shortened: noticed after %v: %+v", time.Since(since), alice.Status().Lifetime)
		if took := time.Since(since); took > 13*time.Minute {
			t.Errorf("noticed after %v", took)
		}
		pass(5 * time.Minute)
		if !known() || beat() != 22.4 {
			t.Errorf("%+v", alice.Status().Lifetime)
		}
		alice.router.SetTimeout(2 * time.Minute)
		alice.call(func(now instant) { alice.loop.restartLifetime(now) })
		pass(9 * time.Minute)
		if beat() != 92 {
			t.Fatalf("%+v", alice.Status().Lifetime)
		}
		alice.router.ChangeIP(netip.MustParseAddr("203.0.113.77"))
		since = time.Now()
		for beat() != 20 && time.Since(since) < time.Hour {
			pass(time.Second)
		}
		t.Logf("another address: noticed after %v: %+v", time.Since(since), alice.Status().Lifetime)
		if took := time.Since(since); took > 93*time.Second {
			t.Errorf("noticed after %v", took)
		}
		pass(9 * time.Minute)
		if low := alice.Status().Lifetime.AtLeast; low != 57 {
			t.Errorf("at least %v s, though mappings were lost at 92 s", low)
		}
	})
}

// call runs f on the loop.
func (a *agent) call(f func(now instant)) {
	if err := a.loop.call(context.Background(), f); err != nil {
		a.t.Fatal(err)
	}
}

// Without UDP nothing is measured and nothing is claimed.
func TestLifetimeWithoutUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		alice.registered()
		w.net.CutUDP(alice.router, nil)
		alice.via("tls")
		pass(5 * time.Minute)
		n, err := alice.Netcheck(w.ctx(time.Minute))
		if err != nil || n.Lifetime.State != "unknown" || n.Lifetime.Reason == "" || n.Lifetime.AtLeast != 0 {
			t.Errorf("%+v, %v", n.Lifetime, err)
		}
		if n.Mapping != "no-udp" || n.Filtering != natt.BehaviorUnknown.String() && n.Filtering != "no-udp" {
			t.Errorf("%+v", n)
		}
	})
}

// A sleepy clock counts sleep that the timers do not see.
type sleepyClock struct {
	labClock
	mu    sync.Mutex
	slept time.Duration
}

func (c *sleepyClock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.labClock.Boot() + c.slept
}

// After a sleep of the machine, which its timers did not see and in which its NAT
// forgot it, an agent is back at once.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		alice.stop()
		clock := &sleepyClock{labClock: labClock{time.Now()}}
		woke := make(chan struct{}, 1)
		alice.cfg.Clock, alice.cfg.Underlay = clock, wakingUnderlay{labUnderlay{alice.host}, woke}
		alice.start()
		bob := w.agent("bob", natlab.Linux)
		w.befriend(bob, alice, "7", "7")
		pass(9 * time.Minute)
		before := alice.welcomed()

		clock.mu.Lock()
		clock.slept += time.Hour
		clock.mu.Unlock()
		alice.router.Flush()
		woke <- struct{}{}
		since := time.Now()
		for !alice.welcomed().After(before) && time.Since(since) < time.Minute {
			pass(time.Millisecond)
		}
		t.Logf("registered again after %v", time.Since(since))
		if took := time.Since(since); took > 200*time.Millisecond {
			t.Errorf("registered again after %v", took)
		}
		if s := alice.Status().Lifetime; s.State != "measuring" || s.AtLeast != 0 {
			t.Errorf("%+v", s)
		}
		if r := stream(bob, alice, 50, 20*time.Millisecond); r.lost != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// A wakingUnderlay tells that something happened on the host.
type wakingUnderlay struct {
	labUnderlay
	changes chan struct{}
}

func (u wakingUnderlay) Changes(context.Context) <-chan struct{} { return u.changes }
