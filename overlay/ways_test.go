package overlay

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// via waits until an agent reaches its server that way.
func (a *agent) via(way string) {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" reaches the server by "+way, func() bool {
		s := a.Status().Servers[0]
		return s.Via == way && s.State == "registered"
	})
}

// An agent behind a firewall without UDP registers by TLS, within a second of its
// start, and is reached there; data goes both ways, and mail too.
func TestUDPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		w.net.CutUDP(alice.router, nil)
		alice.stop()
		start := time.Now()
		alice.start()
		alice.via("tls")
		t.Logf("registered by TLS after %v", time.Since(start))
		if took := time.Since(start); took > time.Second {
			t.Errorf("registered after %v", took)
		}
		for name, pair := range map[string][2]*agent{"from inside": {alice, bob}, "from outside": {bob, alice}} {
			start := time.Now()
			got := stream(pair[0], pair[1], 500, 2*time.Millisecond)
			t.Logf("%s: %+v, %v", name, got, time.Since(start))
			if got.lost > 0 || got.twice > 0 || got.gap > time.Second {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}

// UDP is blocked in the middle of a stream of packets and comes back.
func TestUDPBlockedMidSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		for name, pair := range map[string][2]*agent{"out": {alice, bob}, "in": {bob, alice}} {
			alice.pathTo("bob", "direct")
			done := make(chan result)
			go func() { done <- stream(pair[0], pair[1], 10000, time.Millisecond) }()
			pass(2 * time.Second)
			w.net.CutUDP(alice.router, nil)
			r := <-done
			t.Logf("%s: UDP blocked: gap %v, lost %d of 10000, twice %d", name, r.gap, r.lost, r.twice)
			if r.gap > 2*time.Second || r.twice != 0 {
				t.Errorf("%s: %+v", name, r)
			}
			alice.via("tls")

			go func() { done <- stream(pair[0], pair[1], 40000, time.Millisecond) }()
			pass(time.Second)
			w.net.Uncut(alice.router, nil)
			back := time.Now()
			alice.via("udp")
			t.Logf("%s: UDP is back: used after %v", name, time.Since(back))
			if took := time.Since(back); took > 30*time.Second {
				t.Errorf("%s: off TLS after %v", name, took)
			}
			r = <-done
			t.Logf("%s: UDP is back: gap %v, lost %d of 40000, twice %d", name, r.gap, r.lost, r.twice)
			if r.lost != 0 || r.twice != 0 || r.gap > 100*time.Millisecond {
				t.Errorf("%s: %+v", name, r)
			}
		}
		eventually(t, "the carrier is closed", func() bool {
			n := 0
			for _, s := range alice.plane.snapshot.Load().sockets {
				if s != nil {
					n++
				}
			}
			return n == 0
		})
	})
}

// Only UDP to port 443 passes: it is used, and no stream.
func TestOnlyUDP443(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.extra = append(w.extra, 443)
		w.stop()
		w.startServer()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		alice.stop()
		inside := alice.host.Addr()
		var blocked atomic.Uint64
		w.net.Filter(func(from, to netip.AddrPort, _ []byte) bool {
			if from.Addr() == inside && to.Port() != 443 {
				blocked.Add(1)
				return false
			}
			return true
		})
		start := time.Now()
		alice.start()
		alice.via("udp-443")
		t.Logf("registered over UDP 443 after %v", time.Since(start))
		if got := stream(bob, alice, 500, 2*time.Millisecond); got.lost > 0 || got.twice > 0 {
			t.Errorf("%+v", got)
		}
		if blocked.Load() == 0 {
			t.Error("nothing was blocked")
		}
	})
}

// The server is restarted while an agent hangs on it by TLS: it is back within
// five seconds.
func TestServerRestartOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		alice.registered()
		w.net.CutUDP(alice.router, nil)
		alice.via("tls")
		w.stop()
		pass(3 * time.Second)
		before := alice.welcomed()
		w.startServer()
		up := time.Now()
		eventually(t, "registers again", func() bool { return alice.welcomed().After(before) })
		t.Logf("back after %v", time.Since(up))
		if took := time.Since(up); took > 5*time.Second {
			t.Errorf("back after %v", took)
		}
		alice.via("tls")
	})
}
