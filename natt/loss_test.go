package natt

import (
	"math/rand/v2"
	"testing"
	"time"
)

// moves counts how often a node's data moved between the classes of paths.
func (n *node) moves() (c int) {
	for i, act := range n.changes {
		if i > 0 && act.Path.Relayed() != n.changes[i-1].Path.Relayed() {
			c++
		}
	}
	return c
}

// A direct path that loses a fifth gives way to a relay that does not, in both directions, and stays away as long as it
// does. Loss that all paths share moves nothing, and a path that recovers is used again.
func TestLossChoice(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		w := established(t, seed, natPort, natPort, 50*ms, 200000)
		w.direct.loss = 0.2
		took := w.until("the relay", 60*time.Second, func() bool { return !w.nodes[0].direct() && !w.nodes[1].direct() })
		w.run(2 * time.Second)
		for _, n := range w.nodes {
			n.changes = n.changes[len(n.changes)-1:]
			if st := n.agent.Status(); st.Reason != Lossy {
				t.Errorf("node %d: %v, %s", n.id, st.Reason, st.WhyNotDirect)
			}
		}
		w.run(10 * time.Minute)
		for _, n := range w.nodes {
			if n.moves() > 0 || n.direct() {
				t.Errorf("seed %d: node %d moved %d times while nothing changed", seed, n.id, n.moves())
			}
		}
		w.direct.loss = 0
		back := w.until("direct again", 10*time.Minute, w.bothDirect)
		t.Logf("left after %v, back %v after the loss ended", took, back)
		w.run(time.Minute)
		if !w.bothDirect() {
			t.Error("not direct any more")
		}
	}
}

// Where the relay loses as much, or more, or the loss is small, the direct path stays.
func TestLossNoFlapping(t *testing.T) {
	t.Parallel()
	moves := 0
	for _, c := range []struct{ direct, relay float64 }{{0, 0.2}, {0.02, 0.02}, {0.1, 0.1}, {0.03, 0}, {0.01, 0}} {
		for seed := range uint64(4) {
			w := established(t, seed, natPort, natPort, 50*ms, 200000)
			w.direct.loss, w.relays[0].loss = c.direct, c.relay
			w.run(5 * time.Minute)
			for _, n := range w.nodes {
				n := n.moves() - 1 // one is the upgrade
				if moves += n; n > 4 {
					t.Errorf("direct loses %v, relay %v: %d moves in five minutes", c.direct, c.relay, n)
				}
			}
		}
	}
	t.Logf("%d moves in %d minutes", moves, 5*4*5*2)
	if moves > 30 {
		t.Errorf("%d moves", moves)
	}
}

// Chance does not pass for loss.
func TestLossWorse(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(5, 6))
	draw := func(p float64) (l loss) {
		for i := range lossKept {
			l.add(epoch.Add(time.Duration(i)*time.Second), rnd.Float64() < p)
		}
		return l
	}
	const tries = 2000
	for _, c := range []struct {
		a, b, least, most float64
	}{{0.2, 0.2, 0, 0.01}, {0.05, 0.05, 0, 0.01}, {0.36, 0, 0.98, 1}, {0.2, 0, 0.6, 1}, {0, 0.3, 0, 0}} {
		n := 0
		for range tries {
			x, y := draw(c.a), draw(c.b)
			if x.worse(&y) {
				n++
			}
		}
		if got := float64(n) / tries; got < c.least || got > c.most {
			t.Errorf("%v against %v: worse in %v of all cases, want %v to %v", c.a, c.b, got, c.least, c.most)
		}
	}
}
