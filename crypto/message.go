package crypto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
)

// MessageType is the first byte of a tunnel message. The values lie in the
// range 4-15 that RFC 7983 and RFC 9443 leave unassigned, so that STUN can
// share the socket.
type MessageType uint8

// The tunnel messages.
const (
	TypeInit MessageType = 4
	TypeResp MessageType = 5
	TypeData MessageType = 6
)

// Sizes in bytes.
const (
	InitSize   = 104
	RespSize   = 100
	HeaderSize = 16                   // of DATA
	TagSize    = 16                   // GCM tag, and mac1
	Overhead   = HeaderSize + TagSize // what DATA adds to its plaintext
	// MaxFrame is the longest DATA frame: what a link for packets of 9000 bytes takes. As many of them as call for new
	// keys are 2^35.2 AES blocks, which gives an attacker on GCM an advantage of at most 2^-58 (RFC 9001, B.1).
	MaxFrame = 9000
)

const (
	tunnelVersion = 1
	initHeader    = 16 // type, version, zero 2, sender 4, tag 8
	respHeader    = 12 // type, version, zero 2, sender 4, receiver 4
	initMAC       = InitSize - TagSize
	respMAC       = RespSize - TagSize
	payloadSize   = 24 // of INIT and RESP

	flagPartial = 1
)

// InitHeader returns the clear fields of an INIT; ok is false if b is not
// shaped like one. Nothing is authenticated yet.
func InitHeader(b []byte) (sender uint32, tag uint64, ok bool) {
	if len(b) != InitSize || !hasPreamble(b, TypeInit) {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), true
}

// InitMAC returns mac1 of a message of InitSize bytes: the key under which a
// receiver remembers the INITs that it has seen. A shorter b gives zero.
func InitMAC(b []byte) (mac [16]byte) {
	if len(b) == InitSize {
		copy(mac[:], b[initMAC:])
	}
	return mac
}

// RespHeader returns the clear fields of a RESP; ok is false if b is not
// shaped like one. Nothing is authenticated yet.
func RespHeader(b []byte) (sender, receiver uint32, ok bool) {
	if len(b) != RespSize || !hasPreamble(b, TypeResp) {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), true
}

// hasPreamble checks type, version and the two zero bytes.
func hasPreamble(b []byte, t MessageType) bool {
	return b[0] == byte(t) && b[1] == tunnelVersion && b[2] == 0 && b[3] == 0
}

// DataIndex returns the receiver index of a DATA frame, which selects the
// session; ok is false if b is not shaped like one.
func DataIndex(b []byte) (receiver uint32, ok bool) {
	if len(b) < Overhead || len(b) > MaxFrame || b[0] != byte(TypeData) ||
		b[1]&^flagPartial != 0 || b[2] != 0 || b[3] != 0 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[4:]), true
}

func putInitHeader(b []byte, sender uint32, tag uint64) {
	b[0], b[1], b[2], b[3] = byte(TypeInit), tunnelVersion, 0, 0
	binary.BigEndian.PutUint32(b[4:], sender)
	binary.BigEndian.PutUint64(b[8:], tag)
}

func putRespHeader(b []byte, sender, receiver uint32) {
	b[0], b[1], b[2], b[3] = byte(TypeResp), tunnelVersion, 0, 0
	binary.BigEndian.PutUint32(b[4:], sender)
	binary.BigEndian.PutUint32(b[8:], receiver)
}

func putDataHeader(b []byte, receiver uint32, counter uint64, partial bool) {
	b[0], b[1], b[2], b[3] = byte(TypeData), 0, 0, 0
	if partial {
		b[1] = flagPartial
	}
	binary.BigEndian.PutUint32(b[4:], receiver)
	binary.BigEndian.PutUint64(b[8:], counter)
}

// InitPayload is what an initiator tells in INIT: 24 bytes, encrypted.
type InitPayload struct {
	Millis   uint64 // unix time in ms, 48 bits: orders the INITs of one pair
	Features uint16
	Instance uint64 // random at every start of the daemon: two of one key are noticed
	Head     uint64 // the sender's trust head; reserved
}

// Start is what a RESP has room for of the instance, so that both sides can tell two
// starts of a peer apart, but for one pair of starts in 65,535. It is not 0.
func (p InitPayload) Start() uint16 { return StartOf(p.Instance) }

// StartOf is InitPayload.Start of an instance.
func StartOf(instance uint64) uint16 { return uint16(1 + instance%math.MaxUint16) }

func (p InitPayload) encode() (b [payloadSize]byte, err error) {
	if p.Millis >= 1<<48 {
		return b, errors.New("crypto: tunnel: time does not fit 48 bits")
	}
	binary.BigEndian.PutUint64(b[:], p.Millis<<16|uint64(p.Features))
	binary.BigEndian.PutUint64(b[8:], p.Instance)
	binary.BigEndian.PutUint64(b[16:], p.Head)
	return b, nil
}

func parseInitPayload(b [payloadSize]byte) InitPayload {
	first := binary.BigEndian.Uint64(b[:])
	return InitPayload{
		Millis:   first >> 16,
		Features: uint16(first),
		Instance: binary.BigEndian.Uint64(b[8:]),
		Head:     binary.BigEndian.Uint64(b[16:]),
	}
}

// RespPayload is what a responder tells in RESP: 24 bytes, encrypted.
type RespPayload struct {
	Features uint16
	Start    uint16         // made of the instance as in InitPayload.Start; 0: not told
	Observed netip.AddrPort // where INIT came from; zero when it came by relay
}

func (p RespPayload) encode() (b [payloadSize]byte, err error) {
	binary.BigEndian.PutUint16(b[:], p.Features)
	binary.BigEndian.PutUint16(b[2:], p.Start)
	if p.Observed == (netip.AddrPort{}) {
		return b, nil
	}
	addr := p.Observed.Addr()
	if !addr.IsValid() || addr.Unmap().IsUnspecified() || p.Observed.Port() == 0 {
		return b, fmt.Errorf("crypto: tunnel: observed source %s is no source", p.Observed)
	}
	ip := addr.As16()
	copy(b[4:], ip[:])
	binary.BigEndian.PutUint16(b[20:], p.Observed.Port())
	return b, nil
}

func parseRespPayload(b [payloadSize]byte) (RespPayload, error) {
	p := RespPayload{Features: binary.BigEndian.Uint16(b[:]), Start: binary.BigEndian.Uint16(b[2:])}
	addr, port := netip.AddrFrom16([16]byte(b[4:20])).Unmap(), binary.BigEndian.Uint16(b[20:])
	if b[22] != 0 || b[23] != 0 {
		return RespPayload{}, ErrAuth
	}
	if [18]byte(b[4:22]) == [18]byte{} {
		return p, nil
	}
	if addr.IsUnspecified() || port == 0 {
		return RespPayload{}, ErrAuth
	}
	p.Observed = netip.AddrPortFrom(addr, port)
	return p, nil
}
