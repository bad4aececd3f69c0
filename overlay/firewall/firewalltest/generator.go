package firewalltest

import (
	"encoding/binary"
	"math/rand/v2"
)

// Other is an agent that generated packets name beside their two ends.
const Other = 3000

// A Generator draws packets that are nearly right.
type Generator struct{ *rand.Rand }

// Pick draws one of n.
func (g Generator) Pick(n ...int) int { return n[g.IntN(len(n))] }

// Port draws one of few ports, so that packets meet flows, and sometimes any, so
// that the tables fill up.
func (g Generator) Port() uint16 {
	return uint16(g.Pick(0, 7, 8, 53, 80, 5000, 5001, 40000, 80, 7, g.IntN(65536)))
}

// Packet draws a packet from one agent to another. Some are of or to somebody else,
// cut, bent, fragments of nothing, or name a protocol that is not carried.
func (g Generator) Packet(from, to uint32) []byte { return g.packet(from, to, 0) }

func (g Generator) agent(from, to uint32) uint32 { return [...]uint32{from, to, Other}[g.IntN(3)] }

// packet: depth is 1 for what another packet contains.
func (g Generator) packet(from, to uint32, depth int) []byte {
	switch g.IntN(12) {
	case 0:
		from = g.agent(from, to)
	case 1:
		to = g.agent(from, to)
	}
	var p []byte
	switch g.IntN(10) {
	case 0, 1, 2:
		p = Datagram(from, g.Port(), to, g.Port(), g.IntN(20)).Complete()
	case 3, 4, 5:
		s := Segment(from, g.Port(), to, g.Port(), uint8(g.Pick(0, 2, 16, 18, 24, 17, g.IntN(256))), g.IntN(20))
		s.Options = make([]byte, 4*g.Pick(0, 0, 3))
		p = s.Complete()
	case 6:
		var quote []byte
		if depth == 0 {
			quote = g.packet(to, from, 1)
		}
		p = ICMP(from, to, uint8(g.Pick(1, 2, 3, 4, 128, 129, 133, 137, g.IntN(256))), 0, quote)
	case 7:
		p = Raw(from, to, uint8(g.Pick(0, 43, 44, 50, 51, 59, 60, 41, 4, g.IntN(256))), make([]byte, g.IntN(64)))
	default:
		part := g.packet(from, to, 1)[40:]
		part = append(part, make([]byte, 8*g.IntN(20))...)
		if g.IntN(4) > 0 {
			part = part[:len(part)&^7]
		}
		at := 0
		if g.IntN(2) == 0 {
			at = g.Pick(64, 72, 80, 128, 256, 1200, 65528, 8*g.IntN(8192))
		}
		p = Fragment(from, to, uint8(g.Pick(6, 17, 17, 58, 0, 44)), uint32(g.IntN(4)), at, g.IntN(3) > 0, part)
	}
	if g.IntN(8) == 0 && len(p) > 40 {
		p[40+g.IntN(len(p)-40)] ^= 1 << g.IntN(8)
	}
	if g.IntN(16) == 0 {
		p = p[:40+g.IntN(len(p)-39)]
	}
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}
