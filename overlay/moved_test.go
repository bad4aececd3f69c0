package overlay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// A router that forgets its flows, or gets another address, while both sides
// send: a short gap, and soon a direct path again. Where the router takes stray
// packets for its own only a fresh socket helps, and a hard one is searched anew.
func TestLongRouterForgets(t *testing.T) {
	for _, what := range []string{"flush", "change"} {
		for _, kinds := range [][2]natlab.Kind{
			{natlab.Port, natlab.Linux}, {natlab.Docker, natlab.Linux}, {natlab.Docker, natlab.Docker}, {natlab.Sym, natlab.Linux},
		} {
			if raceEnabled && kinds[0] == natlab.Docker {
				continue
			}
			t.Run(what+" "+kinds[0].String()+"-"+kinds[1].String(), func(t *testing.T) {
				withLuck(t, func(t *testing.T) bool { return routerForgets(t, what, kinds) })
			})
		}
	}
}

func routerForgets(t *testing.T, what string, kinds [2]natlab.Kind) (met bool) {
	w := newWorldWith(t, true)
	defer w.close()
	alice, bob := w.agent("alice", kinds[0]), w.agent("bob", kinds[1])
	w.befriend(alice, bob, "7", "7")
	known(t, alice, bob)
	pass(3 * time.Second)
	const packets = 10000
	done := make(chan result)
	go func() { done <- stream(alice, bob, packets, time.Millisecond) }()
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range packets {
			bob.send(alice, uint32(i), 64)
			<-tick.C
		}
	}()
	pass(5*time.Second + 300*time.Microsecond) // packets are on their way
	if !direct(alice, bob) {
		if kinds[0] != natlab.Sym {
			t.Fatalf("not direct before: %s", alice.peer("bob").WhyNot)
		}
		<-done
		return false
	}
	at := time.Now()
	if what == "flush" {
		alice.router.Flush()
	} else {
		alice.router.ChangeIP(netip.MustParseAddr("203.0.113.77"))
	}
	limit := 2 * time.Second
	if kinds[0] == natlab.Sym {
		limit = 5 * time.Second
	}
	left, took := false, time.Duration(0)
	for time.Since(at) < 5*time.Second && took == 0 {
		pass(10 * time.Millisecond)
		switch left = left || !direct(alice, bob); {
		case left && direct(alice, bob):
			took = time.Since(at)
		}
	}
	r := <-done
	if left && took == 0 && kinds[0] == natlab.Sym {
		untilMet(t, alice, bob)
		took = limit
	}
	t.Logf("gap %v, %d lost, direct again after %v", r.gap, r.lost, took)
	if left && (took == 0 || took > limit) {
		t.Errorf("direct again after %v; %s", took, alice.peer("bob").WhyNot)
	}
	if r.gap > 500*time.Millisecond {
		t.Errorf("a gap of %v", r.gap)
	}
	return true
}
