package overlay

import (
	"encoding/binary"
	"sync"
	"time"
)

// A packet that does not fit the path travels as two FRAG items in two frames.
// fragments joins the halves of one session: at most maxHalves wait, each for
// at most halfLife. It is filled after authentication only, so nobody but the
// peer can fill it.
type fragments struct {
	mu     sync.Mutex
	halves []half
}

type half struct {
	id     uint16
	second bool
	at     time.Duration
	data   []byte
}

const (
	maxHalves = 64
	halfLife  = time.Second
	maxHalf   = 2048
)

// appendFrag appends one half as an item.
func appendFrag(dst []byte, id uint16, second bool, data []byte) []byte {
	n := fragHeader - itemHeader + len(data)
	dst = append(dst, byte(itemFrag), byte(n>>8), byte(n), byte(id>>8), byte(id), 0)
	if second {
		dst[len(dst)-1] = 1
	}
	return append(dst, data...)
}

// add takes the body of a FRAG item. When its other half waits it appends the
// whole packet to dst and returns it; otherwise whole is nil. lost is how many
// halves were given up: malformed, repeated, too old or too many.
func (f *fragments) add(dst, body []byte, now time.Duration) (whole []byte, lost int) {
	if len(body) <= fragHeader-itemHeader || body[2] > 1 || len(body) > maxHalf {
		return nil, 1
	}
	id, second, data := binary.BigEndian.Uint16(body), body[2] == 1, body[3:]
	f.mu.Lock()
	defer f.mu.Unlock()
	lost = f.expire(id, second, now)
	for i := range f.halves {
		h := &f.halves[i]
		if h.id != id {
			continue
		}
		first, last := h.data, data
		if h.second {
			first, last = data, h.data
		}
		whole = append(append(dst, first...), last...)
		f.drop(i)
		return whole, lost
	}
	if len(f.halves) == maxHalves {
		f.drop(0)
		lost++
	}
	f.keep(half{id: id, second: second, at: now}, data)
	return nil, lost
}

// expire drops the halves that waited too long, and the one that the same half
// of the same packet, come again, replaces.
func (f *fragments) expire(id uint16, second bool, now time.Duration) (lost int) {
	for i := 0; i < len(f.halves); {
		if h := &f.halves[i]; now-h.at > halfLife || h.id == id && h.second == second {
			f.drop(i)
			lost++
		} else {
			i++
		}
	}
	return lost
}

// drop takes one half out; its memory stays behind the last one, for keep.
func (f *fragments) drop(i int) {
	last := len(f.halves) - 1
	h := f.halves[i]
	copy(f.halves[i:], f.halves[i+1:])
	f.halves[last] = h
	f.halves = f.halves[:last]
}

func (f *fragments) keep(h half, data []byte) {
	n := len(f.halves)
	if n < cap(f.halves) {
		h.data = f.halves[:n+1][n].data[:0]
	}
	h.data = append(h.data, data...)
	f.halves = append(f.halves, h)
}
