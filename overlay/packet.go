package overlay

import "encoding/binary"

// Next-header values that the packet path knows.
const (
	protoTCP      = 6
	protoUDP      = 17
	protoFragment = 44
	protoICMPv6   = 58
)

// A header is what the firewall looks at in an inner IPv6 packet.
type header struct {
	proto    uint8  // transport protocol; behind a fragment header, of the whole
	src, dst uint16 // ports; ICMPv6: type and code in src, identifier in dst
	tcpFlags uint8
	fragment fragmentPart
	fragID   uint32
	icmpBody []byte // of an ICMPv6 error: the packet it quotes
}

type fragmentPart uint8

const (
	notFragment fragmentPart = iota
	firstFragment
	laterFragment
)

// verdict of parsing: ok, or the reason to drop.
const parsed = dropReasons

// parse reads the inner packet p, whose version nibble and length were checked
// by nextItem. It accepts TCP, UDP and ICMPv6 directly after the IPv6 header or
// after one fragment header, and nothing else: other extension headers have
// been the way around firewalls.
func (h *header) parse(p []byte) dropReason {
	*h = header{}
	h.proto = p[6]
	t := p[ipv6HeaderSize:]
	if h.proto == protoFragment {
		if len(t) < 8 {
			return dropInHeader
		}
		h.proto = t[0]
		off := binary.BigEndian.Uint16(t[2:])
		h.fragID = binary.BigEndian.Uint32(t[4:])
		more := off&1 != 0
		switch {
		case off&^7 != 0:
			h.fragment = laterFragment
			// A follower that begins inside the first 60 bytes could rewrite
			// the header that the first one was admitted for (RFC 5722).
			if off&^7 < 64 {
				return dropInHeader
			}
			return parsed
		case more:
			h.fragment = firstFragment
		}
		t = t[8:]
	}
	switch h.proto {
	case protoTCP:
		if len(t) < 20 {
			return dropInHeader
		}
		if n := int(t[12]>>4) * 4; n < 20 || n > len(t) {
			return dropInHeader
		}
		h.tcpFlags = t[13]
	case protoUDP:
		if len(t) < 8 {
			return dropInHeader
		}
	case protoICMPv6:
		if len(t) < 8 {
			return dropInHeader
		}
		h.src = uint16(t[0])<<8 | uint16(t[1])
		h.dst = binary.BigEndian.Uint16(t[4:])
		if t[0] < 128 {
			h.icmpBody = t[8:]
		}
		return parsed
	default:
		return dropInHeader
	}
	h.src = binary.BigEndian.Uint16(t)
	h.dst = binary.BigEndian.Uint16(t[2:])
	return parsed
}

// SYN without ACK: the packet that opens a TCP connection.
func (h *header) opensTCP() bool { return h.tcpFlags&0x12 == 0x02 }
