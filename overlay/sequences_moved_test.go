package overlay

import (
	"testing"
	"testing/synctest"
	"time"
)

// The sequences of a key that is moved while the old instance of it still runs.

// moved starts another instance of an agent elsewhere, on a copy of its state that is
// made while it is down for a moment.
func (w *world) moved(a *agent, set func(*Config)) *agent {
	w.t.Helper()
	dir := w.t.TempDir()
	a.stop()
	copyState(w.t, a.dir, dir)
	a.start()
	a.registered()
	return w.launch(a.cfg.Name, func(c *Config) {
		c.StateDir = dir
		if set != nil {
			set(c)
		}
	})
}

// replaced waits until the agent says that another instance has taken over, and wants it
// to be out: no path, and nothing that would change what only the other is to change.
func (a *agent) replaced() {
	a.t.Helper()
	eventually(a.t, "the instance stands back", func() bool { return a.Status().State == "conflict" })
	s := a.Status()
	if s.Suspended != nil || s.Servers[0].State != "refused" || s.Servers[0].Error == "" {
		a.t.Errorf("replaced: %+v, %+v", s.Suspended, s.Servers)
	}
	for _, p := range s.Peers {
		if p.Path != "none" || p.Note == "" {
			a.t.Errorf("replaced, but %+v", p)
		}
	}
	_, invite := a.Invite(timeout(a.t), InviteOptions{Ports: "7", TTL: time.Hour})
	_, request := a.Request(timeout(a.t), RequestOptions{Contact: s.Peers[0].Name, Reason: "again"})
	_, approve := a.Approve(timeout(a.t), ApproveOptions{Peer: s.Peers[0].Name})
	_, ping := a.Ping(timeout(a.t), s.Peers[0].Name, 0)
	for _, err := range []error{invite, request, approve, ping} {
		if e, ok := err.(*Error); !ok || e.Code != CodeConflict || e.Hint != replacedHint {
			a.t.Errorf("asked of the replaced instance: %+v", err)
		}
	}
}

// reaches counts packets up from first, ten a second, until one arrives, and wants that
// within the time.
func reaches(from, to *agent, first uint32, within time.Duration) {
	from.t.Helper()
	began := time.Now()
	for i := first; time.Since(began) < within; i++ {
		from.send(to, i, 64)
		if n, err := to.receive(100 * time.Millisecond); err == nil && n >= first {
			return
		}
	}
	from.t.Fatalf("no packet of %s within %v: %+v", from.cfg.Name, within, from.Status().Peers)
}

// drain forgets what was received.
func (a *agent) drain() {
	for a.device.Waiting() > 0 {
		_, _ = a.receive(time.Second)
	}
}

// A key's state is copied to another machine and started there while the old instance runs:
// the old one stands back and says so, peers turn to the new one at once and stay with it,
// whatever the old one's machine does, and the pair is the one it was.
func TestTrustKeyMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		was := bob.slots(alice)[0]
		moved := w.moved(alice, nil)
		alice.replaced()
		reaches(bob, moved, 1000, 3*time.Second)
		agree(moved, bob)
		quiet := alice.device.Waiting()
		elsewhere := func() { _ = alice.loop.call(t.Context(), alice.loop.networkChanged) }
		disturb := []func(){
			elsewhere,
			func() { w.stop(); w.startServer() },
			func() { // the place is free for a while
				w.net.Cut(moved.host, w.server)
				elsewhere()
				pass(6 * time.Minute)
				elsewhere()
				w.net.Uncut(moved.host, w.server)
			},
		}
		for _, f := range disturb {
			f()
			pass(5 * time.Second)
			moved.drain()
			done := make(chan result)
			go func() { done <- stream(bob, moved, 600, 100*time.Millisecond) }()
			for range 60 {
				alice.send(bob, 9999, 64)
				pass(time.Second)
			}
			if r := <-done; r.lost != 0 || r.twice != 0 {
				t.Errorf("the peers lose packets: %+v", r)
			}
			for bob.device.Waiting() > 0 {
				if n, err := bob.receive(time.Second); err == nil && n == 9999 {
					t.Fatal("the replaced instance reaches a peer")
				}
			}
			alice.replaced()
			if s := moved.Status(); s.State != "ready" || s.Servers[0].State != "registered" {
				t.Errorf("the new instance is %s, %+v", s.State, s.Servers)
			}
		}
		passes(moved, bob)
		if n := alice.device.Waiting(); n != quiet {
			t.Errorf("%d packets came to the replaced instance", n-quiet)
		}
		if s := moved.slots(bob); len(s) != 1 || s[0] != was || len(bob.slots(alice)) != 1 || bob.slots(alice)[0] != was {
			t.Errorf("the pair changed: %x", s)
		}
	})
}

// Whoever was started last has the place, again and again; nobody is started by that.
func TestTrustKeyMovedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		moved := w.moved(alice, nil)
		old, new := alice, moved
		for range 3 {
			old.replaced()
			agree(new, bob)
			old.stop()
			old.start()
			old, new = new, old
		}
		old.replaced()
		// When the one in force ends, the other one stays out until it is started anew.
		new.stop()
		pass(10 * time.Minute)
		old.replaced()
		old.stop()
		old.start()
		agree(old, bob)
		new.start()
		old.replaced()
		agree(new, bob)
	})
}

// The clock of the machine that the key moves to is behind: it seems to be the older one,
// and takes over only when told to.
func TestTrustKeyMovedClockBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		behind := func(c *Config) { c.Clock = offClock{labClock{time.Now()}, -24 * time.Hour} }
		moved := w.moved(alice, behind)
		moved.replaced()
		agree(alice, bob)
		moved.stop()
		moved.cfg.Takeover = true
		moved.start()
		alice.replaced()
		agree(moved, bob)
		pass(10 * time.Minute)
		alice.replaced()
		agree(moved, bob)
	})
}

// The new instance changes trust. The old one, started anew, has the place, but finds out
// that it is behind, and puts no trust in force, also not that which was taken back.
func TestTrustKeyMovedAndChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		carol := w.agentWith("carol", nil)
		alice.befriends(carol)
		moved := w.moved(alice, nil)
		alice.replaced()
		agree(moved, bob)
		agree(moved, carol)
		if err := moved.Revoke(timeout(t), "carol"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		apart(moved, carol)
		for _, takeover := range []bool{false, true} {
			alice.stop()
			alice.cfg.Takeover = takeover
			alice.start()
			alice.suspended()
			apart(alice, carol)
			silent(alice, bob)
			eventually(t, "the right one stands back", func() bool { return moved.Status().State == "conflict" })
			moved.stop()
			moved.start()
			eventually(t, "the right one is back", func() bool { return moved.Status().State == "ready" })
			agree(moved, bob)
			apart(moved, carol)
		}
	})
}

// Both instances made changes: the old one before the new one was started. Each is behind
// the other, and neither's trust is in force until a person has looked at it.
func TestTrustKeyMovedBothChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		carol := w.agentWith("carol", nil)
		alice.befriends(carol)
		pass(5 * time.Second)
		dir := t.TempDir()
		alice.stop()
		copyState(t, alice.dir, dir)
		alice.start()
		alice.registered()
		if err := alice.Revoke(timeout(t), "carol"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		moved := w.launch("alice", func(c *Config) { c.StateDir = dir })
		moved.suspended()
		apart(moved, carol)
		alice.replaced()
		if err := moved.Revoke(timeout(t), "carol"); err != nil {
			t.Fatal(err)
		}
		if _, err := moved.Confirm(timeout(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "confirmed", func() bool { return moved.Status().State == "ready" })
		agree(moved, bob)
		pass(5 * time.Second)
		alice.stop()
		alice.start()
		alice.suspended()
		silent(alice, bob)
	})
}
