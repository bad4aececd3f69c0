package overlay

import (
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt"
)

// What bundling costs a packet that nothing waits behind: from the device to the
// socket by way of the bundle, beside the same packet put into a frame at once.
// The two take turns, and the medians of their times are compared.
func BenchmarkBundleOfOne(b *testing.B) {
	a, _, tx := one(b, natt.Path{Remote: addr4}, natt.Path{}, 1500)
	a.socket.discard = true
	s, to := a.out.send, a.peer(2)
	p := icmp(1, 2, 128, 0, make([]byte, 56)) // what ping sends
	bundled := func() {
		s.packet(to, tx, p, false)
		s.flush()
	}
	alone := func() {
		s.reserve()
		at := s.plaintextAt(tx.path)
		f := s.arena[:cap(s.arena)][at : at+(len(p)+15)&^15]
		clear(f[copy(f, p):])
		s.frame(to, tx, f, false)
		s.write()
	}
	const several = 32 // so that reading the clock is little of it
	measure := func(send func()) time.Duration {
		began := time.Now()
		for range several {
			send()
		}
		return time.Since(began)
	}
	var with, without []time.Duration
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			with = append(with, measure(bundled))
			without = append(without, measure(alone))
		} else {
			without = append(without, measure(alone))
			with = append(with, measure(bundled))
		}
	}
	slices.Sort(with)
	slices.Sort(without)
	on, off := with[len(with)/2], without[len(without)/2]
	b.ReportMetric(float64(on.Nanoseconds())/several, "bundled-p50-ns")
	b.ReportMetric(float64(off.Nanoseconds())/several, "alone-p50-ns")
	b.ReportMetric(float64(on)/float64(off), "ratio")
	b.ReportMetric(0, "ns/op") // of both together: no figure
	if n := a.drops.counts(); len(n) != 0 {
		b.Fatal(n)
	}
}
