package firewall

import (
	"encoding/binary"

	"github.com/pilotnet/pilot/trust"
)

// Next-header values besides those of package trust.
const (
	protoFragment = 44
	protoICMPv6   = 58
)

const ipv6HeaderSize = 40

// A Header is what the firewall looks at in an inner IPv6 packet, and what it
// remembers of the last ones that the same goroutine showed it. The zero value is
// ready; goroutines do not share one.
type Header struct {
	proto    uint8  // transport protocol; behind a fragment header, of the whole
	src, dst uint16 // ports; ICMPv6: type and code in src, identifier in dst
	tcpFlags uint8
	fragment fragmentPart
	fragID   uint32
	fragAt   uint16 // offset of a fragment in units of 8 bytes
	body     []byte // the transport header and what follows; of a fragment, its part
	memos    [flowMemos]flowMemo
}

type fragmentPart uint8

const (
	notFragment fragmentPart = iota
	firstFragment
	laterFragment
)

// A follower may not begin in the first 64 bytes, where it could rewrite the
// header that the first one was admitted for (RFC 5722): no link makes
// fragments so small.
const fragMin = 64 / 8

// parse reads the inner packet p, whose version and length the caller checked. It accepts TCP, UDP and ICMPv6 directly after the IPv6 header or
// after one fragment header, and nothing else: other extension headers have
// been the way around firewalls.
func (h *Header) parse(p []byte) Verdict {
	h.proto, h.body, h.fragment = p[6], p[ipv6HeaderSize:], notFragment
	h.src, h.dst, h.tcpFlags, h.fragID, h.fragAt = 0, 0, 0, 0, 0
	if h.proto == protoFragment {
		if r := h.parseFragment(); r != Pass || h.fragment == laterFragment {
			return r
		}
	}
	t := h.body
	switch h.proto {
	case trust.ProtoTCP:
		if len(t) < 20 {
			return BadHeader
		}
		if n := int(t[12]>>4) * 4; n < 20 || n > len(t) {
			return BadHeader
		}
		h.tcpFlags = t[13]
	case trust.ProtoUDP:
		if len(t) < 8 {
			return BadHeader
		}
	case protoICMPv6:
		if len(t) < 8 {
			return BadHeader
		}
		h.src = uint16(t[0])<<8 | uint16(t[1])
		h.dst = binary.BigEndian.Uint16(t[4:])
		return Pass
	default:
		return BadHeader
	}
	h.src = binary.BigEndian.Uint16(t)
	h.dst = binary.BigEndian.Uint16(t[2:])
	return Pass
}

// parseFragment reads the fragment header at the start of body and cuts it off.
func (h *Header) parseFragment() Verdict {
	t := h.body
	if len(t) < 8 {
		return BadHeader
	}
	at := binary.BigEndian.Uint16(t[2:])
	h.proto, h.fragID, h.fragAt, h.body = t[0], binary.BigEndian.Uint32(t[4:]), at>>3, t[8:]
	n, more := len(h.body), at&1 != 0
	if more && n%8 != 0 || int(h.fragAt)*8+n > 0xffff {
		return BadHeader // RFC 8200 4.5
	}
	switch {
	case h.fragAt != 0:
		h.fragment = laterFragment
		if h.fragAt < fragMin || n == 0 {
			return BadHeader
		}
	case more:
		h.fragment = firstFragment
	}
	return Pass
}

// SYN without ACK: the packet that opens a TCP connection.
func (h *Header) opensTCP() bool { return h.tcpFlags&0x12 == 0x02 }
