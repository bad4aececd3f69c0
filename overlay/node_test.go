package overlay

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/natlab"
)

func TestTwoAgentsMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.send(bob, 1, 100)
		if n, err := bob.receive(5 * time.Second); err != nil || n != 1 {
			t.Fatalf("received %d, %v; drops %v", n, err, bob.Status().Drops)
		}
		alice.pathTo("bob", "direct")
		bob.pathTo("alice", "direct")
		for _, size := range []int{4, 400, 1100, 1300, 1360} {
			alice.send(bob, uint32(size), size)
			if n, err := bob.receive(time.Second); err != nil || n != uint32(size) {
				t.Errorf("%d bytes: received %d, %v; drops %v", size, n, err, bob.Status().Drops)
			}
		}
	})
}

// First data leaves one relay round trip after the first packet was read: INIT
// and RESP are the only flights before it.
func TestFirstPacketTakesOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Sym, natlab.Sym)
		defer w.close()
		pass(10 * time.Minute) // sessions and channels expire; virtual time
		if p := alice.peer("bob"); p.Path != "none" {
			t.Fatalf("a session survived idleness: %+v", p)
		}
		start := time.Now()
		alice.send(bob, 7, 100)
		if n, err := bob.receive(5 * time.Second); err != nil || n != 7 {
			t.Fatalf("received %d, %v", n, err)
		}
		// One way between the agents by the relay is two uplinks up and two down.
		oneWay := 4 * natlabDelay
		if took := time.Since(start); took != 3*oneWay {
			t.Errorf("first packet took %v, want %v: INIT, RESP, data", took, 3*oneWay)
		}
		if p := alice.peer("bob"); p.Path != "relay" || p.WhyNot == "" {
			t.Errorf("between symmetric NATs: %+v", p)
		}
	})
}

// Three hours with rekeys lose nothing.
func TestLongRekeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		sessions := map[*crypto.Session]bool{}
		hours := 3
		if raceEnabled {
			hours = 1
		}
		for i := range uint32(hours * 60 * 60 / 2) {
			alice.send(bob, i, 64)
			if n, err := bob.receive(2 * time.Second); err != nil || n != i {
				t.Fatalf("packet %d after %v: received %d, %v; %+v", i, 2*i, n, err, alice.Status())
			}
			pass(2*time.Second - natlabDelay*2)
			sessions[alice.session(bob)] = true
		}
		if n := len(sessions); n < 27*hours || n > 40*hours {
			t.Errorf("%d sessions in %d hours, want about 30 an hour", n, hours)
		}
	})
}

// A stream of numbered packets goes on while a relay path is upgraded: none is
// lost, none comes twice.
func TestUpgradeLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Port)
		defer w.close()
		got := stream(alice, bob, 2000, time.Millisecond)
		if got.lost != 0 || got.twice != 0 {
			t.Errorf("%+v", got)
		}
		if p := alice.peer("bob").Path; p != "direct" {
			t.Errorf("path %q", p)
		}
	})
}

// The server is restarted: agents are back by themselves within 5 s, and the
// direct tunnel loses nothing.
func TestServerRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		done := make(chan result)
		go func() { done <- stream(alice, bob, 10000, time.Millisecond) }()
		pass(time.Second)
		w.stop()
		pass(3 * time.Second)
		before := []time.Time{alice.welcomed(), bob.welcomed()}
		w.startServer()
		up := time.Now()
		for i, a := range []*agent{alice, bob} {
			eventually(t, "registers again", func() bool { return a.welcomed().After(before[i]) })
		}
		if took := time.Since(up); took > 5*time.Second {
			t.Errorf("back after %v", took)
		}
		if r := <-done; r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// NAT reboots and a new public address in the middle of a stream.
func TestNATChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		for name, change := range map[string]func(){
			"flush":     func() { bob.router.Flush() },
			"change ip": func() { alice.router.ChangeIP(netip.MustParseAddr("203.0.113.77")) },
		} {
			done := make(chan result)
			go func() { done <- stream(alice, bob, 20000, time.Millisecond) }()
			pass(2 * time.Second)
			change()
			r := <-done
			if r.gap > time.Second {
				t.Errorf("%s: %+v", name, r)
			}
			t.Logf("%s: lost %d of 20000, longest gap %v", name, r.lost, r.gap)
			alice.pathTo("bob", "direct")
		}
	})
}

// After Revoke has returned no packet passes in either direction; the peer gets
// one notice and then silence.
func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		var toAlice atomic.Int64
		outside := alice.router.Public()
		w.net.Observe(func(e natlab.Event) {
			if e.Kind == natlab.Sent && e.Sender == bob.host && e.To.Addr() == outside {
				toAlice.Add(1)
			}
		})
		alice.send(bob, 1, 64)
		if _, err := bob.receive(time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := alice.Ping(w.ctx(time.Second), "bob", 1); err != nil || toAlice.Load() == 0 {
			t.Fatalf("positive control: %v, %d datagrams captured", err, toAlice.Load())
		}
		toAlice.Store(0)
		if err := bob.Revoke(w.ctx(5*time.Second), "alice"); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Millisecond)
		if n := toAlice.Swap(0); n != 1 {
			t.Errorf("%d notices, want 1", n)
		}
		for i := range uint32(200) {
			alice.send(bob, 100+i, 64)
			pass(50 * time.Millisecond)
		}
		if n, err := bob.receive(time.Second); err == nil {
			t.Errorf("packet %d came through", n)
		}
		if n := toAlice.Load(); n > 0 {
			t.Errorf("bob sent %d datagrams to alice after the notice", n)
		}
		eventually(t, "alice learns of it", func() bool { return len(alice.Peers()) == 0 })
	})
}

// A port outside the scope is closed, also for a flow that was open when the
// grant was narrowed.
func TestScope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7,9", "none")
		alice.send(bob, 1, 64)
		if _, err := bob.receive(time.Second); err != nil {
			t.Fatal(err)
		}
		ports := "9"
		if _, err := bob.Approve(w.ctx(time.Second), ApproveOptions{Peer: "alice", Ports: &ports}); err != nil {
			t.Fatal(err)
		}
		alice.send(bob, 2, 64)
		if n, err := bob.receive(2 * time.Second); err == nil {
			t.Errorf("packet %d passed after the grant was narrowed", n)
		}
		if bob.Status().Drops["in_scope"] == 0 {
			t.Errorf("not counted: %v", bob.Status().Drops)
		}
		eventually(t, "alice learns of the narrower grant", func() bool { return alice.peer("bob").Out == "9" })
	})
}

// With the server down at start the agent comes up on its stored port and
// reaches peers at their last endpoints.
func TestStartWithoutServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Full)
		defer w.close()
		alice.pathTo("bob", "direct")
		port := alice.Status().Socket.Port
		alice.stop()
		w.stop()
		alice.start()
		if got := alice.Status().Socket.Port; got != port {
			t.Errorf("port %d, was %d", got, port)
		}
		alice.send(bob, 5, 64)
		if n, err := bob.receive(5 * time.Second); err != nil || n != 5 {
			t.Errorf("received %d, %v; %+v", n, err, alice.Status())
		}
		pass(5 * time.Second)
		if s := alice.Status(); s.State != "no_server" || s.Servers[0].Error == "" {
			t.Errorf("status does not say what is missing: %+v", s)
		}
		w.startServer()
		alice.registered()
	})
}

// A peer that is back at once keeps the session of its new start when the farewell
// of the one before arrives.
func TestRestartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Full)
		defer w.close()
		for round := range uint32(12) {
			alice.pathTo("bob", "direct")
			alice.stop()
			alice.start()
			alice.send(bob, round, 64)
			if n, err := bob.receive(5 * time.Second); err != nil || n != round {
				t.Fatalf("restart %d: received %d, %v; %+v", round, n, err, bob.Status())
			}
		}
	})
}

// A node ends with all its goroutines, and a second one on the same state is
// refused while the first runs.
func TestSecondDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		_, err := New(alice.cfg)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeConflict || e.Hint == "" {
			t.Fatalf("second daemon: %#v", err)
		}
		// The failed New closed the device that both were given.
		alice.stop()
		alice.start()
	})
}

// An invite works once.
func TestInvite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob, carol := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux), w.agent("carol", natlab.Linux)
		for _, a := range w.agents {
			a.registered()
		}
		token, err := bob.Invite(w.ctx(time.Second), InviteOptions{Ports: "7", TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []*agent{alice, carol} {
			if _, err := a.Accept(w.ctx(10*time.Second), token, "", ""); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			_, err := a.Wait(ctx, bob.ID().Fingerprint)
			cancel()
			if (err == nil) != (a == alice) {
				t.Errorf("%s: %v", a.cfg.Name, err)
			}
		}
		if got := bob.Pending(); len(got) != 1 || got[0].Name != "carol" {
			t.Errorf("the second use should wait for approval: %+v", got)
		}
	})
}

// After a long silence the direct path that was known is gone with its NAT
// mappings, and still the first packets arrive.
func TestFirstPacketAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Port, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		for _, silence := range []time.Duration{time.Minute, 150 * time.Second, 4 * time.Minute, time.Hour} {
			pass(silence)
			start := time.Now()
			if r := stream(alice, bob, 100, 20*time.Millisecond); r.lost != 0 || r.twice != 0 {
				t.Errorf("after %v: %+v", silence, r)
			}
			t.Logf("after %v: 100 packets took %v", silence, time.Since(start))
		}
	})
}

// A grant ends at its time, on the packet path at once.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		ttl := time.Minute
		if _, err := bob.Approve(w.ctx(time.Second), ApproveOptions{Peer: "alice", TTL: &ttl}); err != nil {
			t.Fatal(err)
		}
		pass(50 * time.Second)
		alice.send(bob, 1, 64)
		if _, err := bob.receive(5 * time.Second); err != nil {
			t.Fatal("before the end:", err)
		}
		pass(10 * time.Second)
		alice.send(bob, 2, 64)
		if n, err := bob.receive(5 * time.Second); err == nil {
			t.Errorf("packet %d passed after the end", n)
		}
		pass(2 * time.Minute)
		if p := bob.peer("alice"); p.Trust != "expired" || p.Path != "none" {
			t.Errorf("%+v", p)
		}
	})
}

// An agent that only receives notices that its own address has changed: what
// stops coming in makes it ask.
func TestReceiverMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		bob.pathTo("alice", "direct")
		done := make(chan result)
		go func() { done <- stream(bob, alice, 10000, time.Millisecond) }()
		pass(3 * time.Second)
		alice.router.ChangeIP(netip.MustParseAddr("203.0.113.78"))
		r := <-done
		t.Logf("lost %d of 10000, longest gap %v", r.lost, r.gap)
		if r.gap > 2*time.Second {
			t.Errorf("%+v", r)
		}
	})
}
