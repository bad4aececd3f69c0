package rendezvous

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// A gate lets through so many units a second, with some burst: the generic cell
// rate algorithm in one word, the time until which what has passed is paid for.
// Times are nanoseconds of any one clock.
type gate struct{ paid atomic.Int64 }

// allow charges cost nanoseconds, unless that would run more than burst ahead of now.
func (g *gate) allow(now, cost, burst int64) bool {
	for {
		paid := g.paid.Load()
		from := max(paid, now)
		if from-now > burst {
			return false
		}
		if g.paid.CompareAndSwap(paid, from+cost) {
			return true
		}
	}
}

// A rate is events a second, and how many may come at once.
type rate struct{ cost, burst int64 }

func perSecond(n float64, burst int) rate {
	cost := int64(float64(time.Second) / n)
	return rate{cost: cost, burst: cost * int64(max(burst-1, 0))}
}

// A limiter has one gate for each /24 or /48. Networks share gates when their
// hashes meet: the table never grows, and its seed is random, so nobody can
// choose to share the gate of another.
type limiter struct {
	rate  rate
	seed  maphash.Seed
	gates []gate
}

const limiterGates = 1 << 13

func newLimiter(r rate) *limiter {
	return &limiter{rate: r, seed: maphash.MakeSeed(), gates: make([]gate, limiterGates)}
}

func (l *limiter) allow(now int64, a netip.Addr) bool {
	i := maphash.Comparable(l.seed, network(a)) % limiterGates
	return l.gates[i].allow(now, l.rate.cost, l.rate.burst)
}

// network returns the part of an address that one user is taken to own: /24 or /48.
func network(a netip.Addr) [6]byte {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return [6]byte{0xff, 0xff, 0, b[0], b[1], b[2]}
	}
	b := a.As16()
	return [6]byte(b[:6])
}
