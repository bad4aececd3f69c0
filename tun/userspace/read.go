package userspace

import (
	"os"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pilotnet/pilot/tun"
)

// Read implements tun.Device.
func (s *Stack) Read(p []tun.Packet) (int, error) {
	p = p[:min(len(p), batchSize)]
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if s.link.isClosed() {
			return 0, os.ErrClosed
		}
		if n := s.fill(p); n > 0 {
			return n, nil
		}
		select {
		case <-s.link.ready:
		case <-s.link.done:
		}
	}
}

// fill reads what waits.
func (s *Stack) fill(p []tun.Packet) (n int) {
	for pos := 0; n < len(p); {
		most := min(maxPacket, len(s.arena)-pos-tun.Headroom-tun.Tailroom)
		out := s.link.take(most)
		if out == nil {
			return n
		}
		at := s.arena[pos:]
		size := flatten(at[tun.Headroom:], out)
		room := tun.Headroom + size + tun.Tailroom
		p[n] = tun.Packet{Data: at[tun.Headroom : tun.Headroom+size : room], Buf: at[:room:room]}
		if o := out.GSOOptions; o.Type != stack.GSONone && o.NeedsCsum {
			p[n].Partial = true
			if out.Data().Size() > int(o.MSS) {
				p[n].SegmentSize = int(o.MSS)
			}
		}
		out.DecRef()
		n++
		pos += (room + 63) &^ 63
	}
	return n
}

// flatten copies a packet from the pieces that it consists of.
func flatten(to []byte, p *stack.PacketBuffer) (n int) {
	views, skip := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(to[n:], b[skip:])
		skip = 0
	}
	return n
}
