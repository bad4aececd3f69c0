package dns

import "encoding/binary"

const (
	ipv6Size = 40
	udpSize  = 8
	protoUDP = 17
	port     = 53
)

// A Responder answers packets: it stands at the end of the TUN, where a socket
// would stand on a host. It is safe for concurrent use.
type Responder struct {
	zone *Zone
	own  [16]byte
}

// NewResponder returns the responder at Address.
func NewResponder(z *Zone) *Responder { return &Responder{zone: z, own: Address().As16()} }

// Reply appends the packet that answers packet, an IPv6 packet from the host,
// and returns dst as it was if packet is not a UDP datagram to port 53 of
// Address or deserves no answer. The checksum of packet is not looked at: the
// host leaves it for us to complete, and nothing lies between it and us.
func (r *Responder) Reply(dst, packet []byte) []byte {
	if len(packet) < ipv6Size+udpSize || packet[0]>>4 != 6 || packet[6] != protoUDP ||
		[16]byte(packet[24:40]) != r.own {
		return dst
	}
	u := packet[ipv6Size:]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if binary.BigEndian.Uint16(u[2:]) != port || n < udpSize || n > len(u) || u[0]|u[1] == 0 {
		return dst
	}
	at := len(dst)
	dst = append(dst, make([]byte, ipv6Size+udpSize)...)
	dst = r.zone.Answer(dst, u[udpSize:n])
	p := dst[at:]
	if len(p) == ipv6Size+udpSize {
		return dst[:at]
	}
	size := uint16(len(p) - ipv6Size)
	p[0], p[6], p[7] = 6<<4, protoUDP, 64
	binary.BigEndian.PutUint16(p[4:], size)
	copy(p[8:24], packet[24:40])
	copy(p[24:40], packet[8:24])
	o := p[ipv6Size:]
	copy(o[0:2], u[2:4])
	copy(o[2:4], u[0:2])
	binary.BigEndian.PutUint16(o[4:], size)
	binary.BigEndian.PutUint16(o[6:], udpChecksum(p))
	return dst
}

// udpChecksum is that of the UDP datagram in p, whose field is zero (RFC 8200
// 8.1): the sum over both addresses, the length, the protocol and the datagram.
func udpChecksum(p []byte) uint16 {
	acc := uint32(len(p)-ipv6Size) + protoUDP
	b := p[8:]
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	if sum := ^uint16(acc); sum != 0 {
		return sum
	}
	return 0xffff // zero would say that there is none
}
