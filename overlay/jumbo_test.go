package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// The largest frame of any path is one that a session seals and the sender has room for.
func TestJumboFits(t *testing.T) {
	for _, p := range []natt.Path{{Remote: addr4}, {Remote: addr6}, {Remote: addr4, Channel: 9}, {Remote: addr6, Channel: 9}} {
		n := room(p, natt.MaxBudget) + crypto.Overhead
		if n > crypto.MaxFrame || n+relayHeader > frameSpace {
			t.Errorf("%v: frame of %d bytes", p, n)
		}
	}
}

// The segments of a superpacket share frames where these are large, and come out as they went in.
func TestJumboSuperpacket(t *testing.T) {
	for budget, most := range map[int]int{1500: 45, 3900: 23, 9000: 8} {
		a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, budget)
		s := segment(1, 1, 2, 80, tuntest.ACK, 45*1348)
		p := s.Partial(1348)
		ref := p
		ref.Data = append([]byte(nil), p.Data...)
		want := tuntest.Normalize(ref)
		a.send(p)
		sent := a.socket.take()
		if n := frames(sent); n != most {
			t.Errorf("budget %d: %d frames, want %d", budget, n, most)
		}
		for _, m := range sent {
			if size := max(m.Segment, len(m.Buf)*(1-min(m.Segment, 1))); len(m.Buf) > runBytes || size+outerIPv4 > budget {
				t.Errorf("budget %d: run of %d bytes in frames of %d", budget, len(m.Buf), m.Segment)
			}
		}
		b.receive(addr4, sent...)
		sameFlows(t, b.drained(t), want)
		if n := a.allDropped() + b.allDropped(); n != 0 {
			t.Errorf("budget %d: %d dropped", budget, n)
		}
	}
}

// Agents on links for 9000 bytes use them; one hop for 1500 holds them at 1500, from the start or from later on, and
// numbered packets are lost only while it is found out.
func TestJumbo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Port, natlab.Linux)
		defer w.close()
		uplinks := func(mtu int) {
			for _, a := range []*agent{alice, bob} {
				w.net.SetMTU(a.host, mtu)
				w.net.SetMTU(a.router, mtu)
			}
		}
		budgets := func(want int) func() bool {
			return func() bool {
				alice.send(bob, 0, 64)
				bob.send(alice, 0, 64)
				return alice.peer("bob").Budget == want && bob.peer("alice").Budget == want
			}
		}
		alice.pathTo("bob", "direct")
		eventually(t, "budget 1500", budgets(1500))

		uplinks(9000)
		w.net.SetMTU(bob.router, 1500)
		pass(2 * time.Minute) // the links are looked at each minute
		w.drain()
		if r := stream(alice, bob, 2000, 5*time.Millisecond); r.lost+r.twice != 0 {
			t.Errorf("hop of 1500: %+v", r)
		}
		if !budgets(1500)() {
			t.Errorf("hop of 1500: budget %d and %d", alice.peer("bob").Budget, bob.peer("alice").Budget)
		}

		uplinks(9000)
		for _, a := range []*agent{alice, bob} { // what was tried in vain is tried again after ten minutes, or on a change
			if err := a.loop.call(w.ctx(time.Minute), a.loop.networkChanged); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "budget 9000", budgets(9000))
		pass(time.Second)
		w.drain()
		const count, each = 20, 45
		before := alice.host.Counts().Sent
		for range count {
			s := datagram(alice.cfg.Identity.Node, 4000, bob.cfg.Identity.Node, 7, each*1344)
			if err := alice.device.Inject(s.Partial(1344)); err != nil {
				t.Fatal(err)
			}
		}
		got := 0
		for got < count*each {
			p, err := bob.device.Receive(w.ctx(time.Second))
			if err != nil {
				break
			}
			got += len(tuntest.Normalize(p))
		}
		if sent := alice.host.Counts().Sent - before; got != count*each || sent > count*each/5 {
			t.Errorf("%d of %d datagrams came, in %d packets", got, count*each, sent)
		}
		w.drain()

		w.net.SetMTU(alice.router, 1500) // and no word of it
		r := stream(alice, bob, 4000, 5*time.Millisecond)
		t.Logf("black hole: %+v", r)
		if !budgets(1500)() || r.lost != 0 { // small packets, one in a frame, pass all the time
			t.Errorf("black hole: %+v, budget %d and %d", r, alice.peer("bob").Budget, bob.peer("alice").Budget)
		}
	})
}

// drain reads what waits in the devices.
func (w *world) drain() {
	for _, a := range w.agents {
		for {
			if _, err := a.device.Receive(w.ctx(time.Millisecond)); err != nil {
				break
			}
		}
	}
}

var _ jumboUnderlay = labUnderlay{}
