package overlay

import (
	"encoding/binary"
	"testing"
	"time"
)

func testMAC(i int) (m [16]byte) {
	binary.BigEndian.PutUint64(m[:], uint64(i)*0x9e3779b97f4a7c15+1)
	return m
}

// An INIT is admitted once; a peer has a budget, which those already seen do
// not touch.
func TestInitGuard(t *testing.T) {
	var g initGuard
	now := time.Hour
	for i := range int(guardBurst) {
		if r := g.admit(testMAC(i), now); r != carried {
			t.Fatalf("INIT %d of the burst: %s", i, name(r))
		}
	}
	if r := g.admit(testMAC(100), now); r != dropInInitBudget {
		t.Errorf("above the burst: %s", name(r))
	}
	for range 1000 {
		if r := g.admit(testMAC(3), now); r != dropInInitSeen {
			t.Fatalf("seen: %s", name(r))
		}
	}
	now += time.Second
	for i, want := range []dropReason{carried, carried, dropInInitBudget} {
		if r := g.admit(testMAC(100+i), now); r != want {
			t.Errorf("INIT %d after a second: %s, want %s", i, name(r), name(want))
		}
	}
	now += time.Hour
	admitted := 0
	for i := range 100 {
		if g.admit(testMAC(200+i), now) == carried {
			admitted++
		}
	}
	if admitted != int(guardBurst) {
		t.Errorf("%d after an hour, want the burst", admitted)
	}
}

// Whoever recorded a day of INITs cannot spend the peer's budget with them.
func TestInitGuardRemembersADay(t *testing.T) {
	var g initGuard
	now := time.Duration(0)
	const day = 26 * 60 * 60 / 110 // rekeys in the time that a tag lives
	for i := range day {
		now += 110 * time.Second
		if r := g.admit(testMAC(i), now); r != carried {
			t.Fatalf("rekey %d: %s", i, name(r))
		}
	}
	for i := range day {
		if r := g.admit(testMAC(i), now); r != dropInInitSeen {
			t.Fatalf("replay of %d: %s", i, name(r))
		}
	}
	if r := g.admit(testMAC(day), now); r != carried {
		t.Errorf("the next one: %s", name(r))
	}
	for i := range 10 * guardKept {
		now += time.Second
		g.admit(testMAC(10000+i), now)
		if len(g.seen) > guardKept || len(g.order) != len(g.seen) {
			t.Fatalf("%d remembered, %d in order", len(g.seen), len(g.order))
		}
	}
	now += guardLife + time.Second
	g.admit(testMAC(-1), now)
	if len(g.seen) != 1 {
		t.Errorf("%d remembered after their tags died", len(g.seen))
	}
}

// Errors to our own host are limited, and a flood leaves no debt.
func TestICMPLimiter(t *testing.T) {
	var l icmpLimiter
	now := time.Hour
	count := func(n int) (allowed int) {
		for range n {
			if l.allow(now) {
				allowed++
			}
		}
		return allowed
	}
	if n := count(1_000_000); n != icmpBurst {
		t.Errorf("%d at once, want %d", n, icmpBurst)
	}
	now += icmpPeriod
	if n := count(1000); n != 1 {
		t.Errorf("%d after one period, want 1", n)
	}
	now += time.Hour
	if n := count(1000); n != icmpBurst {
		t.Errorf("%d after an hour, want %d", n, icmpBurst)
	}
}
