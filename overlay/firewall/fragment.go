package firewall

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"time"
)

// A fragTable remembers, for ten seconds, the first fragments that were let
// in, so that their followers pass, and where they end, so that no follower
// overlaps them. Fixed size; a collision makes a follower wait for another
// first one, or, by a 35-bit accident, pass without.
//
//	63    29 28          16 15     0
//	[ hash ][ end, 8 bytes ][ seen ]
type fragTable struct {
	seed maphash.Seed
	n    [256]atomic.Uint64
}

const fragAdmit = uint16(10 * time.Second / flowTick)

func newFragTable() *fragTable { return &fragTable{seed: maphash.MakeSeed()} }

func (t *fragTable) hash(peer, id uint32) uint64 {
	var b [8]byte
	binary.LittleEndian.PutUint32(b[0:], peer)
	binary.LittleEndian.PutUint32(b[4:], id)
	return maphash.Bytes(t.seed, b[:])
}

func (t *fragTable) slot(peer, id uint32) (*atomic.Uint64, uint64) {
	h := t.hash(peer, id)
	return &t.n[h%uint64(len(t.n))], h &^ (1<<29 - 1)
}

// admit remembers a first fragment that ends before end. Of two with one id the
// longer counts.
func (t *fragTable) admit(peer, id uint32, end, now uint16) {
	e, h := t.slot(peer, id)
	if w := e.Load(); t.live(w, h, now) {
		end = max(end, fragEnd(w))
	}
	e.Store(h | uint64(end)<<16 | uint64(now))
}

// follower decides on a fragment at an offset that is not zero.
func (t *fragTable) follower(peer, id uint32, at, now uint16) Verdict {
	e, h := t.slot(peer, id)
	w := e.Load()
	switch {
	case !t.live(w, h, now):
		return StrayFragment
	case at < fragEnd(w):
		return BadHeader
	}
	return Pass
}

func (t *fragTable) live(w, h uint64, now uint16) bool {
	return w != 0 && w&^(1<<29-1) == h && ageOf(uint16(w), now) <= fragAdmit
}

func fragEnd(w uint64) uint16 { return uint16(w>>16) & 0x1fff }

func (t *fragTable) sweep(now uint16, all bool) {
	for i := range t.n {
		if w := t.n[i].Load(); w != 0 && (all || ageOf(uint16(w), now) > fragAdmit) {
			t.n[i].CompareAndSwap(w, 0)
		}
	}
}
