package overlay

import (
	"encoding/binary"
	"errors"

	"github.com/pilotnet/pilot/natt"
)

// The plaintext of a DATA frame is a sequence of items. The first nibble of an
// item says what it is: 6 is an IPv6 packet, whose own header tells its
// length; 0 is padding up to the end of the frame, which must be all zero;
// anything else is a control item:
//
//	0  1  kind (first nibble is neither 0 nor 6)
//	1  2  length n of the body
//	3  n  body
const itemHeader = 3

type itemKind uint8

const (
	itemKeepalive  itemKind = 0x10 // empty
	itemChallenge  itemKind = 0x11 // token 8, size 2: the outer packet this was padded to, 0 = not padded
	itemResponse   itemKind = 0x12 // token 8, size 2, echoed
	itemCandidates itemKind = 0x13 // natt.AppendOffer
	itemClose      itemKind = 0x14 // reason 1: the session ends, nothing more will be answered
	itemFrag       itemKind = 0x15 // id 2, half 1 (0 first, 1 second), data
	itemPing       itemKind = 0x16 // token 8
	itemPong       itemKind = 0x17 // token 8, echoed
	itemHead       itemKind = 0x19 // crypto.Head, signed: the sender's own, or the receiver's shown back
	itemTerms      itemKind = 0x1a // trust.Held: the terms of the receiver that the sender holds
	// itemRekey (0x18) is reserved for an ML-KEM exchange inside the tunnel.
)

// Reasons in a close item.
const (
	closeRevoked  = 1 // trust was withdrawn
	closeShutdown = 2 // the agent is going down; trust stands
	closeReplaced = 3 // another instance of the agent's key has taken over; trust stands
)

const (
	fragHeader     = itemHeader + 3
	challengeBody  = len(natt.Token{}) + 2
	pingBody       = 8
	ipv6HeaderSize = 40
)

var errItem = errors.New("overlay: malformed item")

// appendItem appends a control item.
func appendItem(dst []byte, k itemKind, body []byte) []byte {
	dst = append(dst, byte(k), byte(len(body)>>8), byte(len(body)))
	return append(dst, body...)
}

func appendChallenge(dst []byte, k itemKind, t natt.Token, size int) []byte {
	dst = append(dst, byte(k), 0, byte(challengeBody))
	dst = append(dst, t[:]...)
	return binary.BigEndian.AppendUint16(dst, uint16(size))
}

func parseChallenge(body []byte) (t natt.Token, size int, ok bool) {
	if len(body) != challengeBody {
		return t, 0, false
	}
	copy(t[:], body)
	return t, int(binary.BigEndian.Uint16(body[len(t):])), true
}

// nextItem cuts the first item off b. A packet item has kind 0 and is the
// whole IPv6 packet. At padding, and at the end, it returns a nil item.
func nextItem(b []byte) (kind itemKind, item, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, nil, nil
	}
	switch b[0] >> 4 {
	case 0:
		if !zeros(b) {
			return 0, nil, nil, errItem
		}
		return 0, nil, nil, nil
	case 6:
		if len(b) < ipv6HeaderSize {
			return 0, nil, nil, errItem
		}
		n := ipv6HeaderSize + int(binary.BigEndian.Uint16(b[4:]))
		if n > len(b) {
			return 0, nil, nil, errItem
		}
		return 0, b[:n], b[n:], nil
	default:
		if len(b) < itemHeader {
			return 0, nil, nil, errItem
		}
		n := itemHeader + int(binary.BigEndian.Uint16(b[1:]))
		if n > len(b) {
			return 0, nil, nil, errItem
		}
		return itemKind(b[0]), b[itemHeader:n], b[n:], nil
	}
}

// zeros reports whether b is padding only.
func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
