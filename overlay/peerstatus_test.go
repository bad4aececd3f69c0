package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// Status says of a peer by which path it is reached, why not directly, in a word and
// in a sentence, what is lost there, and when data moved last and how long it stopped.
func TestPeerStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		alice, bob, carol := w.agent("alice", natlab.Sym), w.agent("bob", natlab.Sym), w.agent("carol", natlab.Port)
		w.befriend(alice, bob, "7", "7")
		w.befriend(alice, carol, "7", "7")
		known(t, alice, bob)
		known(t, alice, carol)
		stream(alice, bob, 300, 10*time.Millisecond)
		p := alice.peer("bob")
		if p.Path != "relay" || p.Reason != natt.BothHard.String() || p.WhyNot == "" || p.Budget < frameBase || p.RTTMillis < 30 || p.Loss != 0 {
			t.Errorf("%+v", p)
		}
		eventually(t, "direct to carol", func() bool {
			stream(alice, carol, 100, 10*time.Millisecond)
			return alice.peer("carol").Path == "direct"
		})
		p = alice.peer("carol")
		if p.Reason != "" || p.WhyNot != "" || p.Changed == nil || time.Since(*p.Changed) > time.Minute {
			t.Errorf("%+v", p)
		}
		done := make(chan result)
		go func() { done <- stream(carol, alice, 1000, 10*time.Millisecond) }()
		pass(2 * time.Second)
		w.net.CutUDP(alice.router, carol.router)
		r := <-done
		p = alice.peer("carol")
		t.Logf("%+v; %+v", r, p)
		if p.Path != "relay" || p.Changed == nil || p.GapMillis < 100 || p.GapMillis > millis(r.gap)+150 {
			t.Errorf("gap %v of the stream, %+v", r.gap, p)
		}
	})
}

// What a stream to a server has to drop is counted.
func TestStreamDropsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		w.net.CutUDP(alice.router, nil)
		alice.via("tls")
		alice.pathTo("bob", "relay")
		w.net.Cut(alice.router, nil) // so that the stream stands still
		for i := range 2000 {
			alice.send(bob, uint32(i), 1000)
			if i%100 == 0 {
				pass(time.Millisecond)
			}
		}
		pass(100 * time.Millisecond)
		n := alice.Status().Drops["out_stream"]
		if n < 1000 {
			t.Errorf("%d dropped: %v", n, alice.Status().Drops)
		}
		w.net.Uncut(alice.router, nil)
		w.net.CutUDP(alice.router, nil)
		pass(30 * time.Second)
		if again := alice.Status().Drops["out_stream"]; again < n {
			t.Errorf("%d dropped, %d before", again, n)
		}
	})
}
