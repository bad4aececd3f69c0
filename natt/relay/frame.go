package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// First bytes of the datagrams of this package.
const (
	TypeFrame   = 7
	TypeHello   = 8
	TypeWelcome = 9
	TypeVisit   = 10
	TypeOpened  = 11
	TypeRecord  = 12
	TypeCookie  = 13
	TypeHint    = 14
)

// Sizes of the datagrams of this package.
const (
	FrameOverhead = 12
	HelloSize     = 184
	WelcomeSize   = 96
	VisitSize     = 212
	OpenedSize    = 96
	RecordSize    = 76
	CookieSize    = 40
	HintSize      = 16

	// MaxInner is the largest inner frame that a VISIT carries.
	MaxInner = 104
)

const version = 1

// ErrMalformed says that a datagram or control message is not of the form it
// must have. Nothing was changed by it.
var ErrMalformed = errors.New("relay: malformed message")

// PutFrameHeader writes the 12-byte header of a RELAY frame into b.
func PutFrameHeader(b []byte, channel uint64) {
	binary.BigEndian.PutUint32(b, TypeFrame<<24)
	binary.BigEndian.PutUint64(b[4:], channel)
}

// ParseFrame splits a RELAY frame. inner is part of b and never empty.
func ParseFrame(b []byte) (channel uint64, inner []byte, ok bool) {
	if len(b) <= FrameOverhead || binary.BigEndian.Uint32(b) != TypeFrame<<24 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(b[4:]), b[FrameOverhead:], true
}

// A HintKind says which number the server does not know.
type HintKind uint8

// The kinds of HINT.
const (
	HintSession HintKind = 1
	HintChannel HintKind = 2
)

// AppendHint appends a HINT: the server does not know number.
func AppendHint(dst []byte, kind HintKind, number uint64) []byte {
	dst = append(dst, TypeHint, byte(kind), 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, number)
	return append(dst, 0, 0, 0, 0)
}

// ParseHint parses a HINT.
func ParseHint(b []byte) (kind HintKind, number uint64, ok bool) {
	if len(b) != HintSize || b[0] != TypeHint || b[2]|b[3] != 0 || binary.BigEndian.Uint32(b[12:]) != 0 {
		return 0, 0, false
	}
	kind = HintKind(b[1])
	if kind != HintSession && kind != HintChannel {
		return 0, 0, false
	}
	return kind, binary.BigEndian.Uint64(b[4:]), true
}

const addrSize = 18

func appendAddr(dst []byte, a netip.AddrPort) []byte {
	if !a.Addr().IsValid() {
		return append(dst, make([]byte, addrSize)...)
	}
	ip := a.Addr().As16()
	dst = append(dst, ip[:]...)
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

func parseAddr(b []byte) (netip.AddrPort, bool) {
	ip := netip.AddrFrom16([16]byte(b)).Unmap()
	port := binary.BigEndian.Uint16(b[16:])
	if ip == netip.IPv6Unspecified() {
		return netip.AddrPort{}, port == 0
	}
	return netip.AddrPortFrom(ip, port), true
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}
