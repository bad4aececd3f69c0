package overlay

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// A router that is not done at once when it changes: it forgets its flows twice,
// or is silent in between. However that falls together with our timers, what both
// sides send arrives again soon after the end, in both directions.
func TestLongRouterTakesItsTime(t *testing.T) {
	phases := 5
	if raceEnabled {
		phases = 1
	}
	for _, v := range []struct {
		kind   natlab.Kind
		change bool // of the address
		silent bool
		takes  time.Duration
	}{
		{natlab.Port, false, false, 0},
		{natlab.Port, false, false, 150 * time.Millisecond},
		{natlab.Sym, true, false, 150 * time.Millisecond},
		{natlab.Port, true, true, 400 * time.Millisecond},
		{natlab.Port, false, true, 1100 * time.Millisecond},
	} {
		name := fmt.Sprintf("%v change %v silent %v for %v", v.kind, v.change, v.silent, v.takes)
		t.Run(name, func(t *testing.T) {
			for i := range phases {
				withLuck(t, func(t *testing.T) bool {
					phase := time.Duration(i) * 1013 * time.Millisecond / time.Duration(phases)
					gaps, met := slowRouter(t, v.kind, v.change, v.silent, v.takes, phase)
					if !met && v.kind == natlab.Sym {
						return false
					}
					t.Logf("at %v: gaps of %v and %v", phase, gaps[0], gaps[1])
					limit := 450 * time.Millisecond
					switch {
					case v.silent:
						limit = 700 * time.Millisecond // waits had grown
					case v.kind == natlab.Sym:
						limit = time.Second // the server does not know the new address either
					}
					if max(gaps[0], gaps[1]) > limit {
						t.Errorf("more than %v", limit)
					}
					return true
				})
			}
		})
	}
}

// slowRouter returns the longest silence in each direction after the router is done, and
// whether the two had met before.
func slowRouter(t *testing.T, kind natlab.Kind, change, silent bool, takes, phase time.Duration) (gaps [2]time.Duration, met bool) {
	w := newWorldWith(t, true)
	defer w.close()
	alice, bob := w.agent("alice", kind), w.agent("bob", natlab.Linux)
	w.befriend(alice, bob, "7", "7")
	known(t, alice, bob)
	begun := time.Now()
	const every = 2 * time.Millisecond
	before := 3 * time.Second
	if kind == natlab.Sym {
		before = 6 * time.Second // a search takes up to 5.5 s
	}
	length := before + 4*time.Second
	from := begun.Add(before + phase + 300*time.Microsecond + takes)
	done := make(chan struct{})
	for i, p := range [][2]*agent{{alice, bob}, {bob, alice}} {
		go func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := range int(length / every) {
				p[0].send(p[1], uint32(n), 64)
				<-tick.C
			}
		}()
		go func() {
			last := from
			for time.Since(begun) < length {
				if _, err := p[1].receive(time.Until(begun.Add(length))); err == nil && time.Now().After(from) {
					gaps[i] = max(gaps[i], time.Since(last))
					last = time.Now()
				}
			}
			gaps[i] = max(gaps[i], begun.Add(length).Sub(last))
			done <- struct{}{}
		}()
	}
	forget := func(n byte) {
		if change {
			alice.router.ChangeIP(netip.AddrFrom4([4]byte{203, 0, 113, 77 + n}))
		} else {
			alice.router.Flush()
		}
	}
	pass(time.Until(from) - takes)
	if met = direct(alice, bob); !met && kind != natlab.Sym {
		t.Fatalf("not direct before: %s", alice.peer("bob").WhyNot)
	}
	forget(0)
	if takes > 0 {
		if silent {
			w.net.Cut(alice.router, nil)
		}
		pass(takes)
		w.net.Uncut(alice.router, nil)
		forget(1)
	}
	<-done
	<-done
	return gaps, met
}
