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
