package crypto

const (
	// ReplayWindow is how far behind the newest message one may arrive and
	// still be taken.
	ReplayWindow = 8128

	blockBits  = 64
	windowSize = (ReplayWindow + blockBits) / blockBits // blocks in the ring: a power of two
)

// replayWindow is the ring bitmap of RFC 6479: one block more than the window,
// so that moving forward clears whole blocks and shifts nothing. The zero
// value has seen nothing. It is not safe for concurrent use.
type replayWindow struct {
	next uint64 // one above the newest counter seen
	ring [windowSize]uint64
}

// take records counter and reports whether it was new. Only call it for a
// message that has been authenticated, and with counters below 2^64-1 (the
// callers refuse far smaller ones).
func (w *replayWindow) take(counter uint64) bool {
	block := counter / blockBits
	if counter >= w.next {
		// Clear the blocks that the window moves onto; all of them if it jumps.
		newest := uint64(0)
		if w.next > 0 {
			newest = (w.next - 1) / blockBits
		}
		for i := range min(block-newest, windowSize) {
			w.ring[(newest+1+i)%windowSize] = 0
		}
		w.next = counter + 1
	} else if w.next-1-counter > ReplayWindow {
		return false
	}
	bit := uint64(1) << (counter % blockBits)
	if w.ring[block%windowSize]&bit != 0 {
		return false
	}
	w.ring[block%windowSize] |= bit
	return true
}
