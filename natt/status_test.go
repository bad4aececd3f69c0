package natt

import (
	"testing"
	"time"
)

// The silence around the last change is what an observer of the packets sees.
func TestGap(t *testing.T) {
	t.Parallel()
	w := established(t, 3, natPort, natPort, 2*ms, 6000)
	for _, n := range w.nodes {
		if s := n.agent.Status(); s.Changed.IsZero() || s.Gap > ActiveEvery || s.Reason != Direct {
			t.Errorf("node %d after the upgrade: %+v", n.id, s)
		}
	}
	w.direct.cut = [2]bool{true, true}
	cut := w.now
	w.until("relay", time.Second, func() bool { return !w.nodes[0].direct() && !w.nodes[1].direct() })
	w.run(3 * time.Second)
	for _, n := range w.nodes {
		s := n.agent.Status()
		if d := s.Gap - n.gap; d.Abs() > ActiveEvery+10*ms || s.Gap == 0 {
			t.Errorf("node %d: a gap of %v, seen from outside %v", n.id, s.Gap, n.gap)
		}
		if s.Changed.Before(cut) || s.Reason != StoppedAnswering {
			t.Errorf("node %d: %v, changed %v after the cut", n.id, s.Reason, s.Changed.Sub(cut))
		}
	}
	gap := w.nodes[0].agent.Status().Gap
	w.run(20 * time.Minute) // idle
	w.nodes[0].stream(10*ms, 10, small)
	w.run(50 * ms)
	if s := w.nodes[0].agent.Status(); s.Gap != gap {
		t.Errorf("%v after a rest, with the same path", s.Gap)
	}
}

// The loss that is shown is that of the path.
func TestLossSeen(t *testing.T) {
	t.Parallel()
	var l loss
	for i := range 40 {
		l.add(epoch.Add(time.Duration(i)*time.Second), i%4 == 0)
	}
	if got := l.share(); got != 0.25 {
		t.Errorf("%v of every fourth", got)
	}
	for i := range 64 {
		l.add(epoch.Add(time.Duration(40+i)*time.Second), false)
	}
	if got := l.share(); got != 0 {
		t.Errorf("%v of the last 64", got)
	}
	l.add(epoch.Add(time.Hour), true)
	if l.share() != 1 || l.count != 1 {
		t.Errorf("%+v after an hour", l)
	}
}
