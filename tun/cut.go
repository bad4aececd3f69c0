package tun

import "encoding/binary"

// A Cutter cuts a superpacket into the packets that it stands for, without a
// copy and without computing a checksum:
//
//	var c tun.Cutter
//	if err := c.Reset(pkt, limit); err != nil { drop }
//	for seg := c.Next(); seg != nil; seg = c.Next() {
//		frame = seal(frame, seg, c.Partial())
//	}
//
// Segments are slices of the superpacket itself. Next writes a header directly
// before the payload of the segment that it returns, over the end of the
// payload of the segments before it. So the caller must be done with a segment
// when it calls Next again, and the superpacket is spoilt afterwards.
//
// The zero Cutter is ready for Reset. It is reused without allocation.
type Cutter struct {
	pkt     []byte
	off     int // where the next segment's payload starts
	per     int // payload of a segment; 0: the packet goes as it is
	hl      int // headers of a segment
	seq     uint32
	flags   byte
	proto   byte
	partial bool
	addrs   uint64
	head    [maxHeaderLen]byte
}

// Reset starts on a packet. No segment of TCP will be longer than limit octets,
// IPv6 header included.
//
// A superpacket is cut at its segment size, TCP at less where limit demands it,
// since smaller segments are legal TCP. Datagrams mean what they are: those of a
// UDP superpacket are restored exactly, even if longer than limit. A single TCP
// packet longer than limit is cut as well, if its flags and options allow that
// and its checksum is partial or right. All else is handed out as it is, and
// who calls compares its length with the limit.
//
// It fails with ErrMalformed if a superpacket or a packet with a partial
// checksum is not plain TCP or UDP, or if limit leaves no room for payload.
func (c *Cutter) Reset(p Packet, limit int) error {
	pkt := p.Data
	c.pkt, c.off, c.per, c.partial = nil, 0, 0, p.Partial
	proto, hl, ok := transport(pkt)
	if len(p.Tail) > 0 || !ok && (p.SegmentSize > 0 || p.Partial) {
		return ErrMalformed
	}
	payload := len(pkt) - hl
	per := p.SegmentSize
	switch {
	case !ok:
		per = 0
	case per <= 0:
		per = 0
		if proto == protoTCP && len(pkt) > limit && divisible(pkt, hl, p.Partial) {
			per = limit - hl
		}
	case proto == protoTCP:
		per = min(per, limit-hl)
	}
	if per < 0 || per == 0 && p.SegmentSize > 0 {
		return ErrMalformed
	}
	c.pkt = pkt
	if per == 0 {
		return nil
	}
	c.partial = true
	if payload <= per {
		if !consistent(pkt, proto) {
			c.pkt = nil
			return ErrMalformed
		}
		seed(pkt, proto)
		return nil
	}
	c.off, c.per, c.hl, c.proto = hl, per, hl, proto
	c.addrs = addressSum(pkt)
	copy(c.head[:hl], pkt)
	if proto == protoTCP {
		c.seq = binary.BigEndian.Uint32(pkt[tcpSeq:])
		c.flags = pkt[tcpFlags]
	}
	return nil
}

// Next returns the next segment, or nil after the last. It has room neither
// before nor after it: what lies there is the rest of the superpacket.
func (c *Cutter) Next() []byte {
	if c.pkt == nil {
		return nil
	}
	if c.per == 0 {
		seg := c.pkt
		c.pkt = nil
		return seg[:len(seg):len(seg)]
	}
	first := c.off == c.hl
	end := min(c.off+c.per, len(c.pkt))
	seg := c.pkt[c.off-c.hl : end : end]
	if !first {
		copy(seg, c.head[:c.hl])
	}
	n := len(seg) - headerLen
	binary.BigEndian.PutUint16(seg[4:], uint16(n))
	check := fold(c.addrs + uint64(n))
	last := end == len(c.pkt)
	if c.proto == protoTCP {
		flags := c.flags
		if !first {
			flags &^= flagCWR
		}
		if !last {
			flags &^= flagFIN | flagPSH
		}
		seg[tcpFlags] = flags
		binary.BigEndian.PutUint32(seg[tcpSeq:], c.seq)
		binary.BigEndian.PutUint16(seg[tcpChecksum:], check)
		c.seq += uint32(end - c.off)
	} else {
		binary.BigEndian.PutUint16(seg[udpLength:], uint16(n))
		binary.BigEndian.PutUint16(seg[udpChecksum:], check)
	}
	c.off = end
	if last {
		c.pkt = nil
	}
	return seg
}

// Partial says whether the segments' checksums are partial. It is the same for
// all segments of one packet.
func (c *Cutter) Partial() bool { return c.partial }

// Segments is the number of segments that Next has not returned yet.
func (c *Cutter) Segments() int {
	switch {
	case c.pkt == nil:
		return 0
	case c.per == 0:
		return 1
	}
	return (len(c.pkt) - c.off + c.per - 1) / c.per
}

// divisible says whether a single TCP packet may be cut into several: it is an
// ordinary data segment, no option signs it as a whole (RFC 2385, RFC 5925),
// and a checksum that is computed anew hides no damage.
func divisible(pkt []byte, hl int, partial bool) bool {
	if pkt[tcpFlags]&(flagSYN|flagRST|flagURG) != 0 || !consistent(pkt, protoTCP) {
		return false
	}
	for o := pkt[headerLen+tcpHeaderLen : hl]; len(o) > 0; {
		switch o[0] {
		case 0:
			o = nil
			continue
		case 1:
			o = o[1:]
			continue
		case 19, 29:
			return false
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return partial || checksumHolds(pkt)
}
