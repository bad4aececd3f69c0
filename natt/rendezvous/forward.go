package rendezvous

import (
	"encoding/binary"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// Before both sides have shown that they are there and want it, a channel passes
// handshakes only.
const (
	probationFrame = 200                           // bytes of inner frame
	probationCost  = int64(time.Second / 4)        // four frames a second
	probationBurst = 3 * probationCost             // four at once
	quotaBurst     = int64(250 * time.Millisecond) // of the quota's rate
)

// forward passes on a run of count frames that came on one channel: b, each of
// size bytes but the last. The channel number is rewritten in place and the run
// sent from the buffer it was received in; nothing is allocated.
func (r *reader) forward(m *natt.Message, b []byte, size, count int, number uint64, first byte) {
	s := r.s
	s.table.mu.RLock()
	e, ok := s.table.ends[number]
	var home *session
	if ok {
		home = s.table.homes[e.target]
	}
	s.table.mu.RUnlock()
	if !ok {
		r.hint(m, len(b), relay.HintChannel, number)
		return
	}
	c := e.channel
	var to binding
	var out uint64
	if e.isTarget {
		if home == nil || !home.at(m.Addr, r.sock, r.now) {
			// The agent's address changed, or it is one whose session we lost.
			if home != nil {
				r.hint(m, len(b), relay.HintSession, home.number)
			}
			return
		}
		c.answered.Store(true)
		to, out = c.visitor, c.visitorNumber
	} else {
		if !c.visitor.source(m.Addr, r.sock) {
			r.hint(m, len(b), relay.HintChannel, number)
			return
		}
		c.proven.Store(true)
		if home == nil && first != 0 {
			s.count.offline.Add(uint64(count))
			c.used.Store(r.now)
			return
		}
		if home != nil {
			to, out = *home.bind.Load(), c.targetNumber
		}
	}
	c.used.Store(r.now)
	way, open := &c.toTarget, c.answered.Load()
	if e.isTarget {
		way, open = &c.toVisitor, c.proven.Load()
	}
	if first == 0 { // a keepalive goes back to its sender
		to, out = r.from(m), number
		count, b = probation(&c.echo, r.now, b, size, count)
	} else if !open {
		count, b = probation(&way.young, r.now, b, size, count)
	} else if cost := int64(len(b)) * int64(time.Second) / s.cfg.Limits.ChannelRate; !way.quota.allow(r.now, cost, quotaBurst) {
		s.count.dropped.Add(uint64(count))
		return
	}
	if count == 0 {
		return
	}
	for i := 0; i < len(b); i += size {
		binary.BigEndian.PutUint64(b[i+4:], out)
	}
	s.count.frames.Add(uint64(count))
	s.count.bytes.Add(uint64(len(b)))
	if count == 1 {
		size = 0
	}
	r.send(to.sock, natt.Message{Buf: b, Segment: size, Addr: to.addr, Local: to.local})
}

// probation cuts a run to the frames that a young channel may pass: small ones,
// four a second.
func probation(g *gate, now int64, b []byte, size, count int) (int, []byte) {
	if min(size, len(b)) > relay.FrameOverhead+probationFrame {
		return 0, nil
	}
	n := 0
	for n < count && g.allow(now, probationCost, probationBurst) {
		n++
	}
	return n, b[:min(n*size, len(b))]
}
