package tun

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// ErrMalformed means that a packet is not what its marks say: a superpacket or
// a packet with a partial checksum must be TCP or UDP directly after the IPv6
// header, unfragmented, with lengths that agree.
var ErrMalformed = errors.New("tun: not plain TCP or UDP over IPv6")

// Offsets and numbers of IPv6 (RFC 8200), TCP (RFC 9293) and UDP (RFC 768).
const (
	headerLen = 40 // of IPv6
	protoTCP  = 6
	protoUDP  = 17
	protoICMP = 58

	tcpHeaderLen = 20
	udpHeaderLen = 8
	maxHeaderLen = headerLen + 60

	tcpSeq      = headerLen + 4
	tcpAck      = headerLen + 8
	tcpOffset   = headerLen + 12
	tcpFlags    = headerLen + 13
	tcpChecksum = headerLen + 16
	tcpUrgent   = headerLen + 18
	udpLength   = headerLen + 4
	udpChecksum = headerLen + 6

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagACK = 0x10
	flagURG = 0x20
	flagECE = 0x40
	flagCWR = 0x80
)

// transport returns the protocol of a packet that is TCP or UDP directly after
// the IPv6 header, and where its payload starts. It looks at no length field.
func transport(pkt []byte) (proto byte, payload int, ok bool) {
	if len(pkt) < headerLen+udpHeaderLen || pkt[0]>>4 != 6 {
		return 0, 0, false
	}
	switch pkt[6] {
	case protoUDP:
		return protoUDP, headerLen + udpHeaderLen, true
	case protoTCP:
		if len(pkt) < headerLen+tcpHeaderLen {
			return 0, 0, false
		}
		n := int(pkt[tcpOffset]>>4) * 4
		if n < tcpHeaderLen || headerLen+n > len(pkt) {
			return 0, 0, false
		}
		return protoTCP, headerLen + n, true
	}
	return 0, 0, false
}

// consistent says whether the length fields of a transport packet agree with
// the length that it has.
func consistent(pkt []byte, proto byte) bool {
	n := len(pkt) - headerLen
	return int(binary.BigEndian.Uint16(pkt[4:])) == n &&
		(proto != protoUDP || int(binary.BigEndian.Uint16(pkt[udpLength:])) == n)
}

func checksumField(proto byte) int {
	if proto == protoUDP {
		return udpChecksum
	}
	return tcpChecksum
}

// sum adds the 16-bit words of b to a ones' complement sum (RFC 1071), an odd
// last octet counting as the high half of a word.
func sum(b []byte, acc uint64) uint64 {
	var c uint64
	for len(b) >= 32 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), c)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b), c)
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, c = bits.Add64(acc, uint64(binary.BigEndian.Uint32(b)), c)
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, c = bits.Add64(acc, uint64(binary.BigEndian.Uint16(b)), c)
		b = b[2:]
	}
	if len(b) == 1 {
		acc, c = bits.Add64(acc, uint64(b[0])<<8, c)
	}
	acc, c = bits.Add64(acc, 0, c)
	return acc + c
}

// fold reduces a sum to 16 bits.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// addressSum is the part of the pseudo-header's sum that all segments of a flow
// share: the addresses and the protocol, without the length.
func addressSum(pkt []byte) uint64 {
	return uint64(fold(sum(pkt[8:headerLen], uint64(pkt[6]))))
}

// SetPartial stores the sum of the pseudo-header in the checksum field of a TCP
// or UDP packet or superpacket: what a packet marked Partial must hold there.
// It derives everything from the packet and trusts nothing the field held.
func SetPartial(pkt []byte) error {
	proto, _, ok := transport(pkt)
	if !ok || !consistent(pkt, proto) {
		return ErrMalformed
	}
	seed(pkt, proto)
	return nil
}

func seed(pkt []byte, proto byte) {
	v := fold(addressSum(pkt) + uint64(len(pkt)-headerLen))
	binary.BigEndian.PutUint16(pkt[checksumField(proto):], v)
}

// CompleteChecksum computes the whole transport checksum of a TCP or UDP packet
// whatever its checksum field holds.
func CompleteChecksum(pkt []byte) error {
	proto, _, ok := transport(pkt)
	if !ok || !consistent(pkt, proto) {
		return ErrMalformed
	}
	field := pkt[checksumField(proto):]
	field[0], field[1] = 0, 0
	v := ^fold(sum(pkt[headerLen:], addressSum(pkt)+uint64(len(pkt)-headerLen)))
	if v == 0 && proto == protoUDP {
		v = 0xffff // zero would mean "no checksum", which IPv6 forbids
	}
	binary.BigEndian.PutUint16(field, v)
	return nil
}

// checksumHolds says whether a transport packet carries its right checksum.
func checksumHolds(pkt []byte) bool {
	return fold(sum(pkt[headerLen:], addressSum(pkt)+uint64(len(pkt)-headerLen))) == 0xffff
}
