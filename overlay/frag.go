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
// whole packet to dst and returns it; otherwise it returns nil.
func (f *fragments) add(dst, body []byte, now time.Duration) (whole []byte, ok bool) {
	if len(body) < fragHeader-itemHeader+1 || body[2] > 1 || len(body) > maxHalf {
		return nil, false
	}
	id, second, data := binary.BigEndian.Uint16(body), body[2] == 1, body[3:]
	f.mu.Lock()
	defer f.mu.Unlock()
	live := f.halves[:0]
	for _, h := range f.halves {
		if now-h.at > halfLife {
			continue
		}
		if h.id == id && whole == nil {
			if h.second == second {
				continue // the newer one replaces it
			}
			first, last := h.data, data
			if h.second {
				first, last = data, h.data
			}
			whole = append(append(dst, first...), last...)
			continue
		}
		live = append(live, h)
	}
	clear(f.halves[len(live):])
	f.halves = live
	if whole == nil {
		if len(f.halves) == maxHalves {
			f.halves = append(f.halves[:0], f.halves[1:]...)
		}
		f.halves = append(f.halves, half{id: id, second: second, at: now, data: append([]byte(nil), data...)})
	}
	return whole, true
}
