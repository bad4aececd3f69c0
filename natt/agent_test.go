package natt

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestDirectMatrix(t *testing.T) {
	t.Parallel()
	for a := natNone; a <= natSym; a++ {
		for b := a; b <= natSym; b++ {
			t.Run(fmt.Sprintf("%v-%v", a, b), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 1, a, b)
				w.connect()
				w.run(60 * ms) // the first data waits for the session at the other side
				w.streams(ms, 3000)
				hard := a == natSym && b == natSym || b == natSym && (a == natWall || a == natPort)
				if hard {
					w.run(3 * time.Second)
					if w.nodes[0].direct() || w.nodes[1].direct() {
						t.Error("direct, though the NATs forbid it")
					}
				} else {
					took := 60*ms + w.until("direct", 300*ms, w.bothDirect)
					t.Logf("direct after %v", took)
					w.run(3 * time.Second)
					if !w.bothDirect() {
						t.Errorf("not direct any more\n%v", w)
					}
				}
				w.run(time.Second)
				w.noLoss()
			})
		}
	}
}

// The upgrade loses nothing, delivers nothing twice, and is announced by one overlap of a round trip.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{2 * ms, 15 * ms, 80 * ms, 400 * ms} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2, natPort, natPort)
			w.direct.delay = delay
			w.relays[0].delay = 30 * ms
			w.connect()
			w.run(90 * ms)
			w.streams(ms, 4000)
			w.until("direct", 3*time.Second, w.bothDirect)
			w.run(5 * time.Second)
			w.noLoss()
			for _, n := range w.nodes {
				i := slices.IndexFunc(n.changes, func(a Action) bool { return !a.Path.Relayed() })
				if i < 1 {
					t.Fatalf("no upgrade in %+v", n.changes)
				}
				if n.changes[i].Also != n.changes[i-1].Path || !n.changes[i].Also.Relayed() {
					t.Errorf("upgrade without overlap: %+v", n.changes[i])
				}
				if last := n.changes[len(n.changes)-1]; last.Also != (Path{}) || last.Path.Relayed() {
					t.Errorf("ends at %+v", last)
				}
				if n.duplicate == 0 || n.duplicate > 560 {
					t.Errorf("%d copies", n.duplicate)
				}
				if n.lost > 0 {
					t.Error("ActLost")
				}
			}
		})
	}
}

// established returns a world with a direct path and streams of so many packets each way.
func established(t *testing.T, seed uint64, a, b natKind, every time.Duration, packets int) *world {
	w := newWorld(t, seed, a, b)
	w.connect()
	w.run(60 * ms)
	w.streams(every, packets)
	w.until("direct", 400*ms, w.bothDirect)
	w.run(time.Second)
	w.resetGaps()
	return w
}

func (w *world) gapBelow(limit time.Duration) {
	w.t.Helper()
	for _, n := range w.nodes {
		w.t.Logf("node %d: longest gap %v", n.id, n.gap)
		if n.gap > limit {
			w.t.Errorf("node %d: gap of %v", n.id, n.gap)
		}
	}
}

func TestSilentCut(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		w := established(t, seed, natPort, natPort, 2*ms, 20000/2)
		w.run(time.Duration(seed) * 29 * ms)
		w.direct.cut = [2]bool{true, true}
		down := w.until("relay", time.Second, func() bool { return !w.nodes[0].direct() && !w.nodes[1].direct() })
		w.run(3 * time.Second)
		w.gapBelow(500 * ms)
		t.Logf("demoted after %v", down)
		w.direct.cut = [2]bool{}
		up := w.until("direct again", 40*time.Second, w.bothDirect)
		t.Logf("direct again after %v", up)
	}
}

func TestOneWayCut(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		for from := range 2 {
			w := established(t, seed, natPort, natPort, 2*ms, 5000/2)
			w.run(time.Duration(seed) * 29 * ms)
			w.direct.cut[from] = true
			down := w.until("relay", 1500*ms, func() bool { return !w.nodes[0].direct() && !w.nodes[1].direct() })
			w.run(3 * time.Second)
			t.Logf("demoted after %v", down)
			w.gapBelow(600 * ms)
			if w.nodes[0].direct() || w.nodes[1].direct() {
				t.Errorf("back on the dead path\n%v", w)
			}
		}
	}
}

// A stream in one direction finds a cut as well, and is no reason to leave a good path.
func TestOneWayTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, natPort, natPort)
	w.connect()
	w.run(60 * ms)
	w.nodes[0].stream(2*ms, 15000, small)
	w.until("direct", 400*ms, w.bothDirect)
	w.run(10 * time.Second)
	n := w.nodes[0]
	if last := n.changes[len(n.changes)-1]; last.Path.Relayed() || last.Also != (Path{}) {
		t.Errorf("left a good path: %+v", last)
	}
	if n.actions[ActChallenge] > 150 {
		t.Errorf("%d challenges in 10 s", n.actions[ActChallenge])
	}
	w.resetGaps()
	w.direct.cut[0] = true
	w.until("relay", time.Second, func() bool { return !n.direct() })
	w.run(3 * time.Second)
	if gap := w.nodes[1].gap; gap > 500*ms {
		t.Errorf("gap %v", gap)
	}
}

func TestFlush(t *testing.T) {
	t.Parallel()
	for a := natWall; a <= natPort; a++ {
		for b := natWall; b <= natPort; b++ {
			w := established(t, 4, a, b, 2*ms, 5000/2)
			w.nodes[0].nat.flush()
			w.run(200 * ms)
			w.nodes[0].refresh() // the server tells a new address
			w.nodes[0].step()
			took := 200*ms + w.until("direct", 1800*ms, func() bool {
				heard := func(n *node) bool { return !n.lastIn.Relayed() && w.now.Sub(n.lastAt) < 20*ms }
				return w.bothDirect() && heard(w.nodes[0]) && heard(w.nodes[1])
			})
			w.run(3 * time.Second)
			t.Logf("%v-%v: direct after %v", a, b, took)
			w.gapBelow(time.Second)
			if !w.bothDirect() {
				t.Errorf("%v-%v: not direct\n%v", a, b, w)
			}
		}
	}
}

// A host gets another address. Its owner says so; or its server, a little later; or nobody, and the peer, whose NAT
// lets everything in, learns it from the traffic.
func TestRoam(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		told string
		peer natKind
	}{{"owner", natAddr}, {"server", natPort}, {"nobody", natFull}} {
		w := established(t, 5, natPort, c.peer, 2*ms, 3000)
		w.nodes[0].nat.public = netip.MustParseAddr("203.0.113.77")
		w.nodes[0].nat.flush()
		switch c.told {
		case "owner":
			w.nodes[0].agent.NetworkChanged(w.now)
			w.nodes[0].refresh()
			w.nodes[0].step()
		case "server":
			w.run(300 * ms)
			w.nodes[0].refresh()
			w.nodes[0].step()
		}
		took := w.until("direct", 2*time.Second, func() bool {
			p, _ := w.nodes[1].agent.Best()
			return w.bothDirect() && p.Remote.Addr() == w.nodes[0].nat.public
		})
		t.Logf("%s: direct after %v", c.told, took)
		w.run(3 * time.Second)
		w.gapBelow(time.Second)
		if !w.bothDirect() {
			t.Errorf("%s: not direct any more\n%v", c.told, w)
		}
	}
}

func TestRelayDeath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6, natSym, natSym)
	w.relays = append(w.relays, &link{delay: 40 * ms, mtu: 1500})
	w.connect()
	w.run(100 * ms)
	w.streams(ms, 5000)
	w.run(2 * time.Second)
	w.resetGaps()
	w.relays[0].cut = [2]bool{true, true}
	w.run(4 * time.Second)
	w.gapBelow(time.Second)
	for _, n := range w.nodes {
		if p, ok := n.agent.Best(); !ok || p != n.relay(1) {
			t.Errorf("node %d at %v, %v", n.id, p, ok)
		}
		if n.lost > 0 {
			t.Error("lost, with a second relay")
		}
	}
}

// Relays die while the path is direct: nothing happens.
func TestRelayDeathWhileDirect(t *testing.T) {
	t.Parallel()
	w := established(t, 7, natPort, natFull, 2*ms, 9000/2)
	w.relays[0].cut = [2]bool{true, true}
	w.run(9 * time.Second)
	w.noLoss()
	for _, n := range w.nodes {
		n.agent.Relays(w.now, nil)
		n.step()
	}
	if !w.bothDirect() {
		t.Error("not direct")
	}
}

// Everything dies: ActLost once; when it comes back, the path is used again.
func TestLost(t *testing.T) {
	t.Parallel()
	w := established(t, 8, natPort, natPort, 5*ms, 20000)
	w.relays[0].cut, w.direct.cut = [2]bool{true, true}, [2]bool{true, true}
	w.run(10 * time.Second)
	for _, n := range w.nodes {
		if _, ok := n.agent.Best(); ok || n.lost != 1 || !n.agent.Status().Lost {
			t.Errorf("node %d: ok %v, lost %d times", n.id, ok, n.lost)
		}
	}
	w.relays[0].cut = [2]bool{}
	w.until("relay back", 6*time.Second, func() bool {
		_, a := w.nodes[0].agent.Best()
		_, b := w.nodes[1].agent.Best()
		return a && b
	})
	w.direct.cut = [2]bool{}
	w.until("direct back", 70*time.Second, w.bothDirect)
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for mtu, want := range map[int]int{1280: 1200, 1400: 1372, 1492: 1452, 1500: 1500, 9000: 1500} {
		w := newWorld(t, 9, natPort, natPort)
		w.direct.mtu = mtu
		w.connect()
		w.run(60 * ms)
		w.streams(ms, 4000)
		w.until("direct", 400*ms, w.bothDirect)
		w.run(time.Second)
		for _, n := range w.nodes {
			if n.use.Budget != want || n.agent.Status().Budget != want {
				t.Errorf("mtu %d: budget %d, want %d", mtu, n.use.Budget, want)
			}
			if n.padded > 20 {
				t.Errorf("mtu %d: %d padded challenges", mtu, n.padded)
			}
		}
		w.run(4 * time.Second)
		w.noLoss()
	}
}

// A path that suddenly carries small packets only drops to 1200 and finds its new budget. Bulk stops (everything is
// big), and with other traffic the periodic challenge finds it.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 10, natPort, natPort)
	w.connect()
	w.run(60 * ms)
	w.nodes[0].stream(ms, 20000, w.nodes[0].full)
	w.until("direct", 400*ms, w.bothDirect)
	w.run(2 * time.Second)
	if b := w.nodes[0].use.Budget; b != 1500 {
		t.Fatalf("budget %d", b)
	}
	w.resetGaps()
	w.direct.mtu = 1400
	w.run(3 * time.Second)
	if b := w.nodes[0].use.Budget; b != 1372 {
		t.Errorf("budget %d", b)
	}
	if gap := w.nodes[1].gap; gap > time.Second {
		t.Errorf("gap %v", gap)
	}
	if !w.nodes[0].direct() {
		t.Errorf("left the direct path\n%v", w)
	}

	w = established(t, 11, natPort, natPort, 5*ms, 4000) // small packets both ways
	w.direct.mtu = 1400
	took := w.until("lower budget", 7*time.Second, func() bool { return w.nodes[0].use.Budget == 1372 && w.nodes[1].use.Budget == 1372 })
	t.Logf("found after %v", took)
	w.run(20 * time.Second)
	w.noLoss()
}

func TestTooBig(t *testing.T) {
	t.Parallel()
	w := established(t, 12, natNone, natNone, 2*ms, 2000/2)
	n := w.nodes[0]
	for _, step := range []struct{ size, want int }{{9000, 1500}, {1500, 1452}, {1452, 1372}, {1300, 1200}, {1200, 1200}, {0, 1200}, {-5, 1200}} {
		n.agent.TooBig(w.now, n.use.Path, step.size)
		n.step()
		if n.use.Budget != step.want {
			t.Errorf("after %d: %d, want %d", step.size, n.use.Budget, step.want)
		}
	}
	w.run(700 * time.Second)
	w.streams(ms, 1000)
	w.run(time.Second)
	if n.use.Budget != 1500 {
		t.Errorf("%d after ten minutes", n.use.Budget)
	}
}

// An idle peer costs a challenge in 20 s for three minutes, then nothing; what comes after that loses nothing though
// the NATs have forgotten the flow.
func TestIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 13, natPort, natPort)
	w.nodes[0].nat.forget, w.nodes[1].nat.forget = 30*time.Second, 30*time.Second
	w.connect()
	w.run(60 * ms)
	w.streams(ms, 2000)
	w.until("direct", 400*ms, w.bothDirect)
	w.run(30 * time.Second)
	for _, n := range w.nodes {
		n.actions = map[ActionKind]int{}
	}
	w.run(60 * time.Second)
	for _, n := range w.nodes {
		if got := n.actions[ActChallenge] + n.actions[ActResponse] + n.actions[ActCandidates]; got > 8 || !n.direct() {
			t.Errorf("node %d: %d packets in a quiet minute, direct %v", n.id, got, n.direct())
		}
	}
	w.run(2 * time.Minute)
	for _, n := range w.nodes {
		n.actions = map[ActionKind]int{}
	}
	w.run(10 * time.Minute)
	for _, n := range w.nodes {
		if len(n.actions) > 0 || !n.agent.Next().IsZero() {
			t.Errorf("node %d: %v, next %v while idle", n.id, n.actions, n.agent.Next())
		}
		if !n.use.Also.Relayed() {
			t.Errorf("node %d trusts the direct path alone", n.id)
		}
	}
	w.nodes[0].stream(10*ms, 300, small)
	w.run(500 * ms)
	w.nodes[1].stream(10*ms, 300, small)
	w.until("direct", 3*time.Second, w.bothDirect)
	w.run(5 * time.Second)
	w.noLoss()
	for _, n := range w.nodes {
		if n.use.Also != (Path{}) {
			t.Errorf("node %d still copies: %+v", n.id, n.use)
		}
	}
}

func TestLossyUpgrade(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	demotions := 0
	for seed := range uint64(40) {
		w := newWorld(t, seed, natPort, natPort)
		w.direct.loss, w.relays[0].loss = 0.1, 0.1
		w.connect()
		w.run(60 * ms)
		w.streams(20*ms, 1000)
		took = append(took, 60*ms+w.until("direct", 20*time.Second, w.bothDirect))
		w.run(20 * time.Second)
		for _, n := range w.nodes {
			for i, c := range n.changes {
				if i > 0 && c.Path.Relayed() && !n.changes[i-1].Path.Relayed() {
					demotions++
				}
			}
		}
	}
	slices.Sort(took)
	t.Logf("p50 %v, p95 %v, worst %v, %d demotions in %d s", took[20], took[37], took[39], demotions, 20*40)
	if took[37] > 1500*ms {
		t.Errorf("p95 %v", took[37])
	}
	if demotions > 8 {
		t.Errorf("%d demotions by loss alone", demotions)
	}
}

// A relay that is not there any more costs an idle peer nothing. When the peer is wanted again, the owner is told at
// once if there is no other relay, and another one gets a copy of everything if there is.
func TestRelayGone(t *testing.T) {
	t.Parallel()
	p, q := Path{Remote: relayAddr(0), Channel: 1}, Path{Remote: relayAddr(1), Channel: 2}
	kinds := func(acts []Action) (n map[ActionKind]int) {
		n = map[ActionKind]int{}
		for _, act := range acts {
			n[act.Kind]++
		}
		return n
	}
	for _, idle := range []bool{false, true} {
		for _, other := range []bool{false, true} {
			a := NewAgent(AgentConfig{})
			now := epoch
			a.Relays(now, []Path{p})
			a.Connected(now, p)
			pong(t, a, now, p, 40*ms)
			now = now.Add(time.Second)
			if idle {
				now = now.Add(10 * time.Minute)
			}
			a.Advance(now)
			var left []Path
			if other {
				left = []Path{q}
			}
			a.Relays(now, left)
			acts := kinds(a.Advance(now))
			if idle {
				if acts[ActLost] > 0 || acts[ActChallenge] > 1 || !a.Next().IsZero() {
					t.Errorf("other %v: %v, next %v while idle", other, acts, a.Next())
				}
				now = now.Add(time.Hour)
				a.Active(now, true, false)
				acts = kinds(a.Advance(now))
			}
			if _, ok := a.Best(); ok {
				t.Error("a relay that is gone is said to work")
			}
			if other && (acts[ActLost] > 0 || acts[ActChallenge] == 0 || a.Status().Also != q) || !other && acts[ActLost] != 1 {
				t.Errorf("idle %v, other %v: %v, also %v", idle, other, acts, a.Status().Also)
			}
			a.Connected(now, q)
			a.Advance(now)
			if got, ok := a.Best(); !ok || got != q {
				t.Errorf("idle %v, other %v: at %v, %v", idle, other, got, ok)
			}
		}
	}
}

// A better direct path is taken, one that is not much better is not.
func TestHysteresis(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		old, new time.Duration
		want     bool
	}{{50 * ms, 48 * ms, false}, {50 * ms, 20 * ms, true}, {10 * ms, 8 * ms, false}, {10 * ms, 6 * ms, true}, {20 * ms, 40 * ms, false}} {
		a := NewAgent(AgentConfig{Rand: randReader{rand.New(rand.NewPCG(1, 1))}})
		p, q := direct("203.0.113.5:1"), direct("203.0.113.6:1")
		now := epoch
		a.Connected(now, p)
		pong(t, a, now, p, c.old)
		now = now.Add(3 * time.Second)
		a.Active(now, true, true)
		a.SetRemote(now, []Candidate{{Host, p.Remote}, {Host, q.Remote}})
		pong(t, a, now, q, c.new)
		a.Advance(now.Add(time.Second))
		if got, _ := a.Best(); (got == q) != c.want {
			t.Errorf("%v against %v: at %v", c.new, c.old, got)
		}
	}
}

// If the peer prefers another path that is as good, the side that does not control follows.
func TestFollow(t *testing.T) {
	t.Parallel()
	for _, controlling := range []bool{false, true} {
		a := NewAgent(AgentConfig{Controlling: controlling, Rand: randReader{rand.New(rand.NewPCG(1, 1))}})
		p, q, slow := direct("203.0.113.5:1"), direct("203.0.113.6:1"), direct("203.0.113.7:1")
		now := epoch
		a.Connected(now, p)
		pong(t, a, now, p, 30*ms)
		now = now.Add(3 * time.Second)
		a.Active(now, true, true)
		a.SetRemote(now, []Candidate{{Host, p.Remote}, {Host, q.Remote}, {Host, slow.Remote}})
		pong(t, a, now, q, 31*ms)
		pong(t, a, now, slow, 60*ms)
		for _, c := range []struct {
			in   Path
			want bool
		}{{slow, false}, {q, !controlling}} {
			now = now.Add(3 * time.Second)
			a.Active(now, true, true)
			a.Received(now, c.in)
			pong(t, a, now, p, 30*ms)
			a.Advance(now.Add(40 * ms))
			if got, _ := a.Best(); (got == c.in) != c.want {
				t.Errorf("controlling %v, peer at %v: at %v", controlling, c.in, got)
			}
		}
	}
}

// A change of network does not wake idle peers, but they find out when they are used.
func TestNetworkChangedWhileIdle(t *testing.T) {
	t.Parallel()
	w := established(t, 14, natPort, natPort, 2*ms, 500)
	w.run(10 * time.Minute)
	n := w.nodes[0]
	n.actions = map[ActionKind]int{}
	n.nat.public = netip.MustParseAddr("203.0.113.77")
	n.nat.flush()
	n.agent.NetworkChanged(w.now)
	n.refresh()
	n.step()
	w.run(time.Minute)
	if len(n.actions) > 0 {
		t.Errorf("an idle peer was sent %v", n.actions)
	}
	w.resetGaps()
	w.streams(2*ms, 2000)
	w.until("direct", time.Second, func() bool {
		p, _ := w.nodes[1].agent.Best()
		return w.bothDirect() && p.Remote.Addr() == n.nat.public
	})
	w.run(5 * time.Second)
	w.noLoss()
}

func direct(s string) Path { return Path{Remote: netip.MustParseAddrPort(s)} }

// pong answers the newest challenge over p that is on its way, rtt after it left.
func pong(t *testing.T, a *Agent, now time.Time, p Path, rtt time.Duration) {
	t.Helper()
	a.Advance(now)
	r := a.find(p)
	for end := now.Add(time.Second); r != nil && len(r.pending) == 0 && a.Next().Before(end); {
		a.Advance(a.Next()) // openers come first
	}
	if r == nil || len(r.pending) == 0 {
		t.Fatalf("%v not challenged", p)
	}
	c := r.pending[len(r.pending)-1]
	a.Responded(c.sent.Add(rtt), p, c.token)
}
