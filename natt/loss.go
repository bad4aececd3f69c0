package natt

import (
	"math/bits"
	"time"
)

// A loss estimate is what became of the last 64 small challenges of a route, of the last minute or two.
type loss struct {
	lost  uint64 // one bit a challenge, the newest lowest
	count int
	last  time.Time
}

const (
	lossKept   = 64
	lossForget = time.Minute // without a challenge, what was known says nothing any more
)

func (l *loss) add(now time.Time, lost bool) {
	if now.Sub(l.last) > lossForget {
		*l = loss{}
	}
	l.last = now
	l.count = min(l.count+1, lossKept)
	l.lost <<= 1
	if lost {
		l.lost |= 1
	}
}

// share is how many of the challenges were lost, 0 to 1.
func (l *loss) share() float64 {
	if l.count == 0 {
		return 0
	}
	return float64(bits.OnesCount64(l.lost)) / float64(l.count)
}

// overdue is how long after it left a challenge counts as lost.
func (r *route) overdue() time.Duration { return 2 * r.rtt.timeout() }

// tallyLoss counts the small challenges that should have been answered by now. One that is answered after all
// does not count again: it was too late for what waited behind it.
func (r *route) tallyLoss(now time.Time) {
	for i := range r.pending {
		if c := &r.pending[i]; c.size == 0 && !c.judged && now.Sub(c.sent) >= r.overdue() {
			c.judged = true
			r.loss.add(now, true)
		}
	}
}

// How loss is compared: while data flows the path in use is asked once a second; if that shows loss, it and its
// alternative are asked five times a second for a moment, and what they lose then is compared. The answer to that is
// unlikely to be chance, so a path that is left for its loss comes back only after another comparison.
const (
	sampleEvery  = time.Second
	sampleFast   = 200 * time.Millisecond
	doubtfulLost = 2 // lost challenges of the last few that begin a comparison
	doubtfulOf   = 10
	compareLeast = 20 // challenges of each
	compareWait  = 30 * time.Second
	worseBy      = 0.08 // in the share of lost challenges, at least,
	worseSigma   = 3.0  // and by so many standard deviations
	asGood       = 0.03 // for a path that was left
	shunFirst    = 30 * time.Second
	shunMost     = 4 * time.Minute
)

// comparison is the comparison that is under way.
type comparison struct {
	a, b  *route    // b is the alternative; nil: none is under way
	next  time.Time // challenges
	last  time.Time // end of the last one
	usual time.Time // next challenge of the path in use
}

func (l *loss) recent(n int) (lost int) { return bits.OnesCount64(l.lost & (1<<n - 1)) }

// worse reports whether a loses more than b, and not by chance.
func (l *loss) worse(b *loss) bool {
	if l.count < compareLeast || b.count < compareLeast || l.share()-b.share() < worseBy {
		return false
	}
	variance := func(l *loss) float64 { // of the share, as if one more had been lost
		n := float64(l.count)
		p := (l.share()*n + 1) / (n + 2)
		return p * (1 - p) / n
	}
	d := l.share() - b.share()
	return d*d > worseSigma*worseSigma*(variance(l)+variance(b))
}

// shunned returns a direct path that works and is left for its loss, or nil.
func (a *Agent) shunned() *route {
	for _, r := range a.routes {
		if r.shunned && r.validated {
			return r
		}
	}
	return nil
}

// sampleAt is when challenges for the sake of loss are due; zero for never.
func (a *Agent) sampleAt() time.Time {
	r := a.use.route
	if r == nil || !r.validated || !a.flowing() {
		return time.Time{}
	}
	t := a.compare.usual
	if a.compare.b != nil {
		t = a.compare.next
	}
	if t.After(a.traffic.Add(flowFor)) {
		return time.Time{}
	}
	if t.IsZero() {
		return a.now
	}
	return t
}

// measure does what is due for the comparison of losses.
func (a *Agent) measure() {
	c := &a.compare
	if c.b != nil && (c.a != a.use.route && c.b != a.use.route || !c.a.validated || !c.b.validated || !a.flowing()) {
		a.compared()
	}
	if t := a.sampleAt(); t.IsZero() || t.After(a.now) {
		return
	}
	r := a.use.route
	r.tallyLoss(a.now)
	if c.b == nil {
		c.usual = a.now.Add(sampleEvery)
		a.sample(r)
		a.beginComparison(r)
		return
	}
	c.next = a.now.Add(sampleFast)
	for _, o := range []*route{c.a, c.b} {
		o.tallyLoss(a.now)
		a.sample(o)
	}
	switch {
	case c.a.shunned:
		if min(c.a.loss.count, c.b.loss.count) < lossKept*3/4 {
			return
		}
		if c.a.loss.share() <= c.b.loss.share()+asGood {
			c.a.shunned = false
		} else {
			a.shun(c.a)
		}
		a.compared()
	case c.a.loss.worse(&c.b.loss):
		a.leave(c.a, c.b)
		a.compared()
	case min(c.a.loss.count, c.b.loss.count) == lossKept:
		a.compared()
	}
}

// beginComparison begins one if the path in use seems to lose, or one that was left is to be looked at again.
func (a *Agent) beginComparison(r *route) {
	c := &a.compare
	if s := a.shunned(); s != nil && r.path.Relayed() && !a.now.Before(s.again) {
		*c = comparison{a: s, b: r, next: a.now.Add(sampleFast), last: c.last, usual: c.usual}
	} else if o := a.fallback(); o != nil && o.validated && !o.shunned && a.now.Sub(c.last) >= compareWait &&
		r.loss.recent(doubtfulOf) >= doubtfulLost {
		*c = comparison{a: r, b: o, next: a.now.Add(sampleFast), last: c.last, usual: c.usual}
	} else {
		return
	}
	c.a.loss, c.b.loss = loss{}, loss{} // what made us look is no fair sample
}

// compared ends the comparison.
func (a *Agent) compared() {
	c := &a.compare
	c.a, c.b, c.last, c.usual = nil, nil, a.now, a.now.Add(sampleEvery)
}

// leave takes another path because r loses more.
func (a *Agent) leave(r, other *route) {
	if r.path.Relayed() == other.path.Relayed() {
		r.hold = a.now.Add(shunFirst)
	} else {
		a.shun(r)
	}
	if r == a.use.route {
		a.take(other)
	}
}

// shun keeps a direct path from being used for a while, longer each time.
func (a *Agent) shun(r *route) {
	r.shunned = true
	r.again = a.now.Add(min(shunFirst<<min(r.shuns, 8), shunMost))
	r.shuns++
}
