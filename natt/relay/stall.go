package relay

import "time"

// A stall is how the queue of a Carrier knows a stream that stands still from one that is slow. TCP waits 200 ms and more
// before it repeats what was lost, and nothing leaves meanwhile: what comes in that time is let wait, in a queue that
// may be longer for once. A stream that is always slow gets no longer queue; there packets would only grow old.
type stall struct {
	began time.Time     // of the write under way
	usual time.Duration // what writes take, smoothed
	room  int           // bytes that may wait, 0: as many as ever; shrinks with what waits
}

const (
	stallLeast = 100 * time.Millisecond // a shorter write is none
	stallTimes = 4                      // nor is one that takes less than this times the usual
	stallRoom  = 4                      // times the queue
)

// over reports whether n bytes are too many to wait.
func (s *stall) over(n, limit int, writing bool) bool {
	if n <= max(limit, s.room) {
		return false
	}
	if writing && n <= limit*stallRoom && time.Since(s.began) >= max(stallLeast, stallTimes*s.usual) {
		s.room = limit * stallRoom
		return false
	}
	return true
}

// wrote says that a write has ended, if there was one, and that n bytes wait.
func (s *stall) wrote(writing bool, n, limit int) {
	if writing {
		s.usual += (time.Since(s.began) - s.usual) / 8
	}
	if s.room = min(s.room, n); s.room <= limit {
		s.room = 0
	}
}
