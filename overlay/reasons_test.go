package overlay

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// reasons notes why alice says that bob is not reached directly, every 2 ms for d.
func (a *agent) reasons(d time.Duration, of *agent) map[natt.Reason]string {
	seen := map[natt.Reason]string{}
	for end := time.Now().Add(d); time.Now().Before(end); pass(2 * time.Millisecond) {
		done := make(chan struct{})
		a.loop.calls <- func(instant) {
			defer close(done)
			if k := a.loop.links[of.cfg.Identity.Key.Public()]; k != nil {
				s := k.agent.Status()
				seen[s.Reason] = s.WhyNotDirect
			}
		}
		<-done
	}
	return seen
}

// Every reason has a lab that yields it.
func TestReasons(t *testing.T) {
	between := func(w *world, a, b *agent) { w.net.CutUDP(a.router, b.router) }
	for _, c := range []struct {
		a, b   natlab.Kind
		before func(w *world, a, b *agent) // they know each other
		first  func(w *world, a, b *agent) // before befriending
		during func(w *world, a, b *agent) // after 3 s of traffic
		last   time.Duration
		rest   time.Duration // without traffic, in the end
		search bool          // for the ports of a hard NAT
		want   []natt.Reason
	}{
		{a: natlab.Port, b: natlab.Port, want: []natt.Reason{natt.NoSession, natt.NoAddresses, natt.Trying, natt.Direct}},
		{a: natlab.Sym, b: natlab.Sym, want: []natt.Reason{natt.BothHard}},
		{a: natlab.SymAddr, b: natlab.Port, search: true, want: []natt.Reason{natt.NotAttested, natt.HardHere, natt.Direct}},
		{a: natlab.Port, b: natlab.Sym, search: true, want: []natt.Reason{natt.NotAttested, natt.HardThere, natt.Direct}},
		{a: natlab.Port, b: natlab.Linux, before: between, last: 12 * time.Second, want: []natt.Reason{natt.Filtered}},
		{a: natlab.Port, b: natlab.Linux, during: between, last: 3 * time.Second, want: []natt.Reason{natt.Direct, natt.StoppedAnswering}},
		{a: natlab.Port, b: natlab.Linux, during: lossBetween, last: 30 * time.Second, want: []natt.Reason{natt.Direct, natt.Lossy}},
		{a: natlab.Port, b: natlab.Linux, first: func(w *world, a, _ *agent) { w.net.CutUDP(a.router, nil) }, want: []natt.Reason{natt.NoUDPHere}},
		{a: natlab.Port, b: natlab.Linux, first: func(w *world, _, b *agent) { w.net.CutUDP(b.router, nil) }, want: []natt.Reason{natt.NoUDPThere}},
		{a: natlab.Port, b: natlab.Linux, before: between, last: time.Second, rest: 15 * time.Minute, want: []natt.Reason{natt.NotTried}},
		{a: natlab.Port, b: natlab.Linux, want: []natt.Reason{natt.Unusable}, before: func(w *world, _, b *agent) {
			w.net.CutUDP(b.router, nil) // after the survey, so that nobody says yet that UDP is blocked
			pass(30 * time.Second)
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorldWith(t, true)
			defer w.close()
			a, b := w.agent("alice", c.a), w.agent("bob", c.b)
			if c.first != nil {
				c.first(w, a, b)
				pass(5 * time.Second)
			}
			w.befriend(a, b, "7", "7")
			known(t, a, b)
			pass(3 * time.Second)
			if c.before != nil {
				c.before(w, a, b)
			}
			var done sync.WaitGroup
			done.Go(func() { stream(a, b, int((3*time.Second+c.last)/(10*time.Millisecond)), 10*time.Millisecond) })
			seen := a.reasons(3*time.Second, b)
			if c.during != nil {
				c.during(w, a, b)
			}
			for r, text := range a.reasons(c.last, b) {
				seen[r] = text
			}
			done.Wait()
			if c.search {
				untilMet(t, a, b)
			}
			if pass(c.rest); c.search || c.rest > 0 {
				for r, text := range a.reasons(10*time.Millisecond, b) {
					seen[r] = text
				}
			}
			for _, r := range c.want {
				if text, ok := seen[r]; !ok || (text == "") != (r == natt.Direct) {
					t.Errorf("%v-%v: %v is not said: %v", c.a, c.b, r, seen)
				}
			}
			if !slices.Contains(c.want, natt.Direct) {
				if _, ok := seen[natt.Direct]; ok {
					t.Errorf("%v-%v: direct", c.a, c.b)
				}
			}
		})
	}
}

// lossBetween loses a third of what goes straight from one to the other.
func lossBetween(w *world, a, b *agent) {
	r := rand.New(rand.NewPCG(1, 2))
	server := w.server.Addr()
	w.net.Filter(func(from, to netip.AddrPort, _ []byte) bool {
		return from.Addr() == server || to.Addr() == server || r.Float64() > 0.33
	})
}
