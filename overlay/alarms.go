package overlay

import (
	"container/heap"
	"time"
)

// An alarm calls its owner at a time.
type alarm struct {
	ring  func(instant)
	at    time.Time
	index int // in the heap, plus one; 0: not set
}

// alarms is a queue of deadlines, so that ten thousand idle peers cost the loop
// nothing. The zero value is empty.
type alarms struct{ h alarmHeap }

// set moves an alarm; the zero time takes it out.
func (q *alarms) set(a *alarm, at time.Time) {
	switch {
	case at.IsZero() && a.index != 0:
		heap.Remove(&q.h, a.index-1)
	case at.IsZero():
	case a.index != 0:
		a.at = at
		heap.Fix(&q.h, a.index-1)
	default:
		a.at = at
		heap.Push(&q.h, a)
	}
}

// next returns the earliest deadline, zero if there is none.
func (q *alarms) next() time.Time {
	if len(q.h) == 0 {
		return time.Time{}
	}
	return q.h[0].at
}

// ring calls everything that is due.
func (q *alarms) ring(now instant) {
	for len(q.h) > 0 && !q.h[0].at.After(now.wall) {
		a := q.h[0]
		heap.Pop(&q.h)
		a.ring(now)
	}
}

type alarmHeap []*alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}
func (h *alarmHeap) Push(x any) {
	a := x.(*alarm)
	*h = append(*h, a)
	a.index = len(*h)
}
func (h *alarmHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.index = 0
	return a
}
