package natt

import "time"

const (
	minBudget   = 1200             // passes everywhere (RFC 9000, section 14)
	climbTries  = 3                // how often a size is tried
	climbPause  = 10 * time.Minute // until it is tried again
	verifyEvery = 2 * time.Second  // at most
	verifyFor   = 2 * time.Second  // after this a full-size challenge without a small answer says nothing
)

// budgetSteps are the sizes above minBudget that are tried: what fits 1420 (a tunnel), 1492 (PPPoE, less the headers
// that others add) and 1500 bytes.
var budgetSteps = [...]int{1372, 1452, 1500}

// A budget is the size of the largest outer packet that is known to pass a path, and the search for a larger one.
type budget struct {
	size    int
	ceiling int       // the system refuses larger ones; 0: not known to
	lifted  time.Time // when the ceiling is forgotten
	tries   int       // of the climb that runs
	next    time.Time // of the climb; zero: none
	verify  time.Time // when the full-size challenge under way left; zero: none
	last    time.Time // when the last one left
	small   bool      // a small one that left no earlier was answered
}

func newBudget() budget { return budget{size: minBudget} }

// climb starts a search for larger sizes.
func (b *budget) climb(now time.Time) {
	b.tries, b.next = 0, now
}

// settle is the time that an answer is given.
func settle(rtt estimate) time.Duration {
	return max(2*rtt.smooth, 100*time.Millisecond)
}

// deadline is when advance has something to do; zero if nothing is planned. Climbing waits for traffic.
func (b *budget) deadline(rtt estimate) (verify, climb time.Time) {
	if !b.verify.IsZero() {
		verify = b.verify.Add(verifyFor)
		if b.small {
			verify = b.verify.Add(settle(rtt))
		}
	}
	return verify, b.next
}

// judge drops the budget if the full-size challenge is lost and the small one is not.
func (b *budget) judge(now time.Time, rtt estimate) {
	verify, _ := b.deadline(rtt)
	if verify.IsZero() || verify.After(now) {
		return
	}
	if b.small {
		b.size = minBudget
		b.climb(now)
	}
	b.verify = time.Time{}
}

// advance returns the sizes to try now.
func (b *budget) advance(now time.Time, rtt estimate) []int {
	if b.next.IsZero() || b.next.After(now) {
		return nil
	}
	if b.ceiling != 0 && !b.lifted.After(now) {
		b.ceiling, b.tries = 0, 0
	}
	var sizes []int
	if b.tries < climbTries {
		for i, s := range budgetSteps {
			if s > b.size && (b.ceiling == 0 || s <= b.ceiling) {
				sizes = budgetSteps[i:]
				break
			}
		}
		for b.ceiling != 0 && len(sizes) > 0 && sizes[len(sizes)-1] > b.ceiling {
			sizes = sizes[:len(sizes)-1]
		}
	}
	switch {
	case len(sizes) > 0:
		b.tries++
		b.next = now.Add(settle(rtt))
	case b.size == budgetSteps[len(budgetSteps)-1]:
		b.next = time.Time{}
	default:
		b.tries, b.next = 0, now.Add(climbPause)
	}
	return sizes
}

// verifying notes that a challenge of full size leaves now, if it is time for one. It returns its size, or 0.
func (b *budget) verifying(now time.Time) int {
	if b.size <= minBudget || !b.verify.IsZero() || now.Sub(b.last) < verifyEvery {
		return 0
	}
	b.verify, b.last, b.small = now, now, false
	return b.size
}

// answered notes that a challenge was answered.
func (b *budget) answered(c challenge) {
	if c.size == 0 {
		b.small = b.small || !c.sent.Before(b.verify)
		return
	}
	if b.ceiling != 0 && c.size > b.ceiling {
		return
	}
	if c.size >= b.size {
		b.size = c.size
		if !c.sent.Before(b.verify) {
			b.verify = time.Time{}
		}
	}
}

// refused notes that the system does not send packets of this size.
func (b *budget) refused(now time.Time, size int) {
	if size <= minBudget {
		size = minBudget + 1 // nothing smaller is of use
	}
	b.ceiling, b.lifted = size-1, now.Add(climbPause)
	if b.size > b.ceiling {
		b.size = minBudget
		for _, s := range budgetSteps {
			if s <= b.ceiling {
				b.size = s
			}
		}
		b.verify = time.Time{}
	}
	if b.next.IsZero() {
		b.next = b.lifted
	}
}
