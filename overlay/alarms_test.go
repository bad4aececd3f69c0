package overlay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Alarms ring once each, in the order of their times, however they are set,
// moved and taken back, also by an alarm that rings.
func TestAlarms(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	start := time.Unix(1000, 0)
	var q alarms
	const n = 200
	want := map[*alarm]time.Time{}
	rang := 0
	var list []*alarm
	for range n {
		a := &alarm{}
		a.ring = func(now instant) {
			at, ok := want[a]
			if !ok || at.After(now.wall) {
				t.Errorf("rang at %v, set for %v", now.wall, at)
			}
			for o, t2 := range want {
				if t2.Before(at) && o.index == 0 {
					t.Errorf("one that was earlier was lost")
				}
			}
			delete(want, a)
			rang++
			if rang%3 == 0 { // again, and take another one back
				want[a] = now.wall.Add(time.Second)
				q.set(a, want[a])
				o := list[rang%n]
				delete(want, o)
				q.set(o, time.Time{})
			}
		}
		list = append(list, a)
	}
	now := start
	for range 2000 {
		a := list[r.IntN(n)]
		if r.IntN(5) == 0 {
			delete(want, a)
			q.set(a, time.Time{})
		} else {
			want[a] = now.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
			q.set(a, want[a])
		}
		if r.IntN(4) == 0 {
			now = now.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
			q.ring(instant{wall: now})
		}
		var first time.Time
		for _, at := range want {
			if first.IsZero() || at.Before(first) {
				first = at
			}
		}
		if got := q.next(); !got.Equal(first) {
			t.Fatalf("next is %v, want %v", got, first)
		}
	}
	if len(q.h) != len(want) || rang == 0 {
		t.Errorf("%d in the queue, want %d; %d rang", len(q.h), len(want), rang)
	}
}
