package natt

import (
	"slices"
	"testing"
	"time"
)

// jumbo makes a world whose nodes have links for packets of mtu bytes, and a path between them that takes them too.
func jumbo(t *testing.T, seed uint64, mtu int) *world {
	w := newWorld(t, seed, natPort, natPort)
	w.direct.mtu = mtu
	w.connect()
	for _, n := range w.nodes {
		n.agent.LinkMTU(w.now, mtu)
		n.step()
	}
	w.run(60 * ms)
	return w
}

func (w *world) budgets(want int) bool {
	return !slices.ContainsFunc(w.nodes[:], func(n *node) bool { return n.use.Budget != want || n.agent.Status().Budget != want })
}

// On links for large packets the budget grows to what they take, and no further.
func TestBudgetJumbo(t *testing.T) {
	t.Parallel()
	for mtu, want := range map[int]int{1280: 1200, 1500: 1500, 1600: 1600, 3900: 3900, 4000: 4000, 8192: 8192, 8896: 8896, 9000: 9000, 9216: 9000, 65535: 9000} {
		w := jumbo(t, 31, mtu)
		w.streams(ms, 2000)
		w.until("direct", 400*ms, w.bothDirect)
		w.run(1500 * ms)
		if !w.budgets(want) {
			t.Errorf("mtu %d: budget %d and %d, want %d", mtu, w.nodes[0].use.Budget, w.nodes[1].use.Budget, want)
		}
		for _, n := range w.nodes {
			if n.padded > 20 {
				t.Errorf("mtu %d: %d padded challenges", mtu, n.padded)
			}
		}
		w.run(time.Second)
		w.noLoss()
	}
}

// Where the links take more than the path between them the budget stays at 1500 and nothing is lost. Nobody sends large
// packets in vain on a path that does not take 1500.
func TestBudgetNarrowHop(t *testing.T) {
	t.Parallel()
	for hop, want := range map[int]int{1500: 1500, 1400: 1372} {
		w := jumbo(t, 32, 9000)
		w.direct.mtu = hop
		largest := 0
		for _, n := range w.nodes {
			n.watch = func(act Action) { largest = max(largest, act.Size) }
		}
		w.streams(ms, 4000)
		w.until("direct", 400*ms, w.bothDirect)
		w.run(5 * time.Second)
		if !w.budgets(want) {
			t.Errorf("hop of %d: budget %d and %d", hop, w.nodes[0].use.Budget, w.nodes[1].use.Budget)
		}
		for _, n := range w.nodes {
			if n.padded > 25 {
				t.Errorf("hop of %d: %d padded challenges", hop, n.padded)
			}
		}
		if tried := largest > 1500; tried != (hop == 1500) {
			t.Errorf("hop of %d: tried up to %d", hop, largest)
		}
		w.noLoss()
	}
}

// Through a relay nothing above 1500 is tried.
func TestBudgetRelay(t *testing.T) {
	t.Parallel()
	w := jumbo(t, 33, 9000)
	w.direct.cut = [2]bool{true, true}
	w.relays[0].mtu = 9000
	w.streams(ms, 3000)
	w.run(3500 * ms)
	if !w.budgets(1500) {
		t.Errorf("budget %d and %d", w.nodes[0].use.Budget, w.nodes[1].use.Budget)
	}
	w.noLoss()
}

// A black hole on a path that took large packets is noticed, and traffic goes on with what still passes.
func TestBudgetJumboBlackHole(t *testing.T) {
	t.Parallel()
	w := jumbo(t, 34, 9000)
	w.nodes[0].stream(ms, 20000, w.nodes[0].full)
	w.until("direct", 400*ms, w.bothDirect)
	w.until("9000", 2*time.Second, func() bool { return w.nodes[0].use.Budget == 9000 })
	w.run(2 * time.Second)
	w.resetGaps()
	w.direct.mtu = 1500
	w.run(4 * time.Second)
	if b := w.nodes[0].use.Budget; b != 1500 || !w.nodes[0].direct() {
		t.Errorf("budget %d\n%v", b, w)
	}
	// Nothing is heard back here, so the path has been asked all the time, at most every verifyEvery.
	if gap := w.nodes[1].gap; gap > verifyEvery+time.Second/2 {
		t.Errorf("gap %v", gap)
	}
}

// Links that change: what they do not take any more is not sent, and what they take now is tried.
func TestBudgetLinkChanges(t *testing.T) {
	t.Parallel()
	w := jumbo(t, 35, 9000)
	w.streams(ms, 7000)
	n := w.nodes[0]
	w.until("9000", 2*time.Second, func() bool { return n.use.Budget == 9000 })
	for _, step := range []struct{ mtu, want int }{{4000, 4000}, {9000, 9000}, {1500, 1500}, {0, 1500}, {-1, 1500}, {4000, 4000}, {8896, 8896}, {1 << 30, 9000}} {
		n.agent.LinkMTU(w.now, step.mtu)
		n.step()
		w.run(700 * ms)
		if n.use.Budget != step.want {
			t.Errorf("link of %d: budget %d, want %d", step.mtu, n.use.Budget, step.want)
		}
	}
	w.run(2 * time.Second)
	w.noLoss()
}

// If the path's own link takes less than another of the host's, the system says so, whatever was tried at once.
func TestBudgetOtherLink(t *testing.T) {
	t.Parallel()
	w := jumbo(t, 36, 9000)
	w.direct.mtu = 1500
	for _, n := range w.nodes {
		n.watch = func(act Action) {
			if act.Size > 1500 {
				w.after(0, func() {
					n.agent.TooBig(w.now, act.Path, act.Size)
					n.step()
				})
			}
		}
	}
	w.streams(ms, 3000)
	w.run(3500 * ms)
	for _, n := range w.nodes {
		if n.use.Budget != 1500 || n.padded > 12 {
			t.Errorf("budget %d after %d padded challenges", n.use.Budget, n.padded)
		}
		if b := n.agent.find(n.use.Path).budget; b.ceiling != 3899 {
			t.Errorf("ceiling %d", b.ceiling)
		}
	}
	w.noLoss()
}
