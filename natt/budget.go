package natt

import "time"

// MaxBudget is the largest budget that a path can have: what the links of data centres agree on.
const MaxBudget = 9000

const (
	minBudget   = 1200             // passes everywhere (RFC 9000, section 14)
	plainBudget = 1500             // larger ones are for links that take them
	climbTries  = 3                // how often a size is tried
	climbPause  = 10 * time.Minute // until it is tried again
	verifyEvery = 2 * time.Second  // at most
	verifyFor   = 2 * time.Second  // after this a full-size challenge without a small answer says nothing
)

// budgetSteps are the sizes above minBudget that are tried: what fits 1420 (a tunnel), 1492 (PPPoE, less the headers
// that others add) and 1500 bytes; and on links for more what the clouds have (3900, 8896), and 9000 bytes.
var budgetSteps = [...]int{1372, 1452, plainBudget, 3900, 8896, MaxBudget}

// A budget is the size of the largest outer packet that is known to pass a path, and the search for a larger one.
type budget struct {
	size    int
	link    int       // what our links take, at most MaxBudget; plainBudget where that is not known or of no use
	ceiling int       // the system refuses larger ones; 0: not known to
	lifted  time.Time // when the ceiling is forgotten
	tries   int       // of the climb that runs
	next    time.Time // of the climb; zero: none
	verify  time.Time // when the full-size challenge under way left; zero: none
	last    time.Time // when the last one left
	small   bool      // a small one that left no earlier was answered
}

func newBudget(link int) budget {
	return budget{size: minBudget, link: min(max(link, plainBudget), MaxBudget)}
}

// over notes what our links take now.
func (b *budget) over(now time.Time, link int) {
	old := b.link
	if b.link = newBudget(link).link; b.link == old {
		return
	}
	if b.size > b.link {
		b.size, b.verify = b.fits(b.link), time.Time{}
	}
	if b.size == old { // nothing larger was tried
		b.climb(now)
	}
}

// above is the next size to try after another; 0 if there is none. The last is what the links take.
func (b *budget) above(size int) int {
	if size >= b.link {
		return 0
	}
	for _, s := range budgetSteps {
		if s > size {
			return min(s, b.link)
		}
	}
	return 0
}

// fits is the largest size that is not above a limit.
func (b *budget) fits(limit int) int {
	fit := minBudget
	for s := b.above(fit); s != 0 && s <= limit; s = b.above(s) {
		fit = s
	}
	return fit
}

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
		for s := b.above(b.size); s != 0 && (b.ceiling == 0 || s <= b.ceiling); s = b.above(s) {
			if s > plainBudget && b.size < plainBudget {
				break // a path that does not take these is spared more
			}
			sizes = append(sizes, s)
		}
	}
	switch {
	case len(sizes) > 0:
		b.tries++
		b.next = now.Add(settle(rtt))
	case b.size >= b.link:
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
	if c.size > b.link {
		return
	}
	if c.size >= b.size {
		if b.size < plainBudget && c.size >= plainBudget {
			b.tries = 0 // of those that are tried from now on
		}
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
	if b.ceiling == 0 || size <= b.ceiling || !b.lifted.After(now) {
		b.ceiling = size - 1 // of several refused at once the smallest counts
	}
	b.lifted = now.Add(climbPause)
	if b.size > b.ceiling {
		b.size, b.verify = b.fits(b.ceiling), time.Time{}
	}
	if b.next.IsZero() {
		b.next = b.lifted
	}
}
