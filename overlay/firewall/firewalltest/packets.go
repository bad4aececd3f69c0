// Package firewalltest tests firewalls: packets between agents, a generator of such
// that are nearly right, and a reference that decides on them slowly.
package firewalltest

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// ULAPort is a socket address in the overlay.
func ULAPort(node uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(ipam.Addr{Node: node}.ULA(), port)
}

// Raw is an inner packet with any next header.
func Raw(from, to uint32, proto uint8, payload []byte) []byte {
	p := tuntest.Segment{Src: ULAPort(from, 0), Dst: ULAPort(to, 0), HopLimit: 64, Payload: payload}.Complete()
	p[6] = proto
	return p
}

// Fragment puts a fragment header before a part of a packet.
func Fragment(from, to uint32, proto uint8, id uint32, at int, more bool, part []byte) []byte {
	h := make([]byte, 8, 8+len(part))
	h[0] = proto
	binary.BigEndian.PutUint16(h[2:], uint16(at))
	if more {
		h[3] |= 1
	}
	binary.BigEndian.PutUint32(h[4:], id)
	return Raw(from, to, 44, append(h, part...))
}

// ICMP is an inner ICMPv6 message.
func ICMP(from, to uint32, kind, code uint8, rest []byte) []byte {
	return Raw(from, to, 58, append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, rest...))
}

// Segment is a TCP segment with a payload of zeros.
func Segment(from uint32, sport uint16, to uint32, dport uint16, flags uint8, payload int) tuntest.Segment {
	return tuntest.Segment{
		Src: ULAPort(from, sport), Dst: ULAPort(to, dport), Proto: trust.ProtoTCP, HopLimit: 64,
		Flags: flags, Window: 1000, Payload: make([]byte, payload),
	}
}

// Datagram is a UDP datagram with a payload of zeros.
func Datagram(from uint32, sport uint16, to uint32, dport uint16, payload int) tuntest.Segment {
	return tuntest.Segment{
		Src: ULAPort(from, sport), Dst: ULAPort(to, dport), Proto: trust.ProtoUDP, HopLimit: 64, Payload: make([]byte, payload),
	}
}

// Scope parses a scope.
func Scope(t testing.TB, s string) trust.Scope {
	p, err := trust.ParseScope(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
