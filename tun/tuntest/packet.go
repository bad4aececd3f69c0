package tuntest

import (
	"encoding/binary"
	"net/netip"

	"github.com/pilotnet/pilot/tun"
)

// Protocol numbers for Segment.Proto.
const (
	ICMPv6 = 58
	TCP    = 6
	UDP    = 17
)

// TCP flags for Segment.Flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// A Segment describes an IPv6 packet to be built field by field. With TCP or UDP
// it has that header, else Payload follows the IPv6 header directly.
type Segment struct {
	Src, Dst netip.AddrPort
	Proto    uint8
	Class    uint8
	Label    uint32
	HopLimit uint8
	Payload  []byte

	Seq, Ack       uint32
	Flags          uint8
	Window, Urgent uint16
	Options        []byte // a multiple of four octets
}

// Complete returns the packet with its transport checksum.
func (s Segment) Complete() []byte {
	b := s.build()
	if field := checksumAt(b); field > 0 {
		v := ^slowSum(b, len(b))
		if v == 0 && s.Proto == UDP {
			v = 0xffff
		}
		binary.BigEndian.PutUint16(b[field:], v)
	}
	return b
}

// Partial returns the packet with the sum of the pseudo-header in the place of
// its checksum. A positive size makes it a superpacket.
func (s Segment) Partial(size int) tun.Packet {
	b := s.build()
	if field := checksumAt(b); field > 0 {
		binary.BigEndian.PutUint16(b[field:], slowSum(b, 40))
	}
	return tun.Packet{Data: b, Partial: true, SegmentSize: size}
}

func (s Segment) build() []byte {
	b := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(s.Class)<<20|s.Label&0xfffff)
	b = append(b, 0, 0, s.Proto, s.HopLimit)
	src, dst := s.Src.Addr().As16(), s.Dst.Addr().As16()
	b = append(append(b, src[:]...), dst[:]...)
	switch s.Proto {
	case TCP:
		b = binary.BigEndian.AppendUint16(b, s.Src.Port())
		b = binary.BigEndian.AppendUint16(b, s.Dst.Port())
		b = binary.BigEndian.AppendUint32(b, s.Seq)
		b = binary.BigEndian.AppendUint32(b, s.Ack)
		b = append(b, byte(20+len(s.Options))<<2, s.Flags)
		b = binary.BigEndian.AppendUint16(b, s.Window)
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint16(b, s.Urgent)
		b = append(b, s.Options...)
	case UDP:
		b = binary.BigEndian.AppendUint16(b, s.Src.Port())
		b = binary.BigEndian.AppendUint16(b, s.Dst.Port())
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(s.Payload)))
		b = append(b, 0, 0)
	}
	b = append(b, s.Payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// Normalize is the reference that fast code is compared with, slow and written
// apart from it: the packets that a packet or superpacket stands for, each
// complete with its checksum.
func Normalize(p tun.Packet) [][]byte {
	b := append([]byte(nil), p.Data...)
	for _, t := range p.Tail {
		b = append(b, t...)
	}
	if !p.Partial && p.SegmentSize <= 0 {
		return [][]byte{b}
	}
	s, ok := parse(b)
	if !ok {
		return [][]byte{b}
	}
	size := p.SegmentSize
	if size <= 0 || len(s.Payload) <= size {
		return [][]byte{s.Complete()}
	}
	var out [][]byte
	for rest := s.Payload; len(rest) > 0; {
		n := min(size, len(rest))
		q := s
		q.Payload = rest[:n]
		rest = rest[n:]
		q.Seq = s.Seq + uint32(len(s.Payload)-len(rest)-n)
		if len(out) > 0 {
			q.Flags &^= CWR
		}
		if len(rest) > 0 {
			q.Flags &^= FIN | PSH
		}
		out = append(out, q.Complete())
	}
	return out
}

func parse(b []byte) (Segment, bool) {
	if len(b) < 48 || b[0]>>4 != 6 {
		return Segment{}, false
	}
	first := binary.BigEndian.Uint32(b)
	s := Segment{Proto: b[6], Class: uint8(first >> 20), Label: first & 0xfffff, HopLimit: b[7]}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	s.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[40:]))
	s.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[42:]))
	switch s.Proto {
	case UDP:
		s.Payload = b[48:]
		return s, true
	case TCP:
		if len(b) < 60 || len(b) < 40+int(b[52]>>4)*4 || b[52]>>4 < 5 {
			return Segment{}, false
		}
		s.Seq, s.Ack = binary.BigEndian.Uint32(b[44:]), binary.BigEndian.Uint32(b[48:])
		s.Flags, s.Window = b[53], binary.BigEndian.Uint16(b[54:])
		s.Urgent = binary.BigEndian.Uint16(b[58:])
		s.Options, s.Payload = b[60:40+int(b[52]>>4)*4], b[40+int(b[52]>>4)*4:]
		return s, b[52]&15 == 0
	}
	return Segment{}, false
}

func checksumAt(b []byte) int {
	switch b[6] {
	case TCP:
		return 56
	case UDP:
		return 46
	case ICMPv6:
		if len(b) >= 44 {
			return 42
		}
	}
	return 0
}

// slowSum is the ones' complement sum of the pseudo-header and of the transport
// packet up to the given offset, octet by octet, with the checksum field as zero.
func slowSum(b []byte, upTo int) uint16 {
	field := checksumAt(b)
	total := uint32(b[6]) + uint32(len(b)-40)
	for i := 8; i < upTo; i++ {
		v := uint32(b[i])
		if i == field || i == field+1 {
			v = 0
		}
		if i%2 == 0 {
			v <<= 8
		}
		total += v
	}
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
