package overlay

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A classifier is the firewall as the protocol page says it, slow and written
// apart from it: maps and wall-clock arithmetic instead of packed words. Of the
// firewall's tables it knows only which keys share a place, which their random
// seeds decide; that both forget the same entry when a place is full is checked
// like everything else.
type classifier struct {
	in, out trust.Scope
	version int
	placeOf func(proto, local, remote int) uint64
	slotOf  func(id uint32) uint64
	flows   map[uint64][]*refFlow
	firsts  map[uint64]*refFirst
}

func newClassifier(f *firewall, peer *peer) *classifier {
	return &classifier{
		flows: map[uint64][]*refFlow{}, firsts: map[uint64]*refFirst{},
		placeOf: func(proto, local, remote int) uint64 {
			return f.flows.hash(flowKey{peer.node, uint8(proto), uint16(local), uint16(remote)}) % flowSets
		},
		slotOf: func(id uint32) uint64 {
			return f.frags.hash(peer.node, id) % uint64(len(f.frags.n))
		},
	}
}

type refFlow struct {
	key     string
	ours    bool
	version int
	seen    int64 // ticks
}

type refFirst struct {
	id   uint32
	end  int
	seen int64
}

type refPacket struct {
	proto, icmpType int
	frag            bool
	at              int
	more            bool
	id              uint32
	sport, dport    int
	flags           byte
	body            []byte
	malformed       bool
}

func read16(b []byte, at int) int { return int(b[at])<<8 | int(b[at+1]) }

func readPacket(p []byte) (r refPacket) {
	r.proto, r.body = int(p[6]), p[40:]
	if r.proto == 44 {
		if len(r.body) < 8 {
			return refPacket{malformed: true}
		}
		r.frag = true
		r.proto = int(r.body[0])
		r.at = read16(r.body, 2) / 8 * 8
		r.more = r.body[3]%2 == 1
		r.id = binary.BigEndian.Uint32(r.body[4:])
		r.body = r.body[8:]
		if r.more && len(r.body)%8 != 0 || r.at+len(r.body) > 65535 {
			r.malformed = true
			return r
		}
		if r.at > 0 {
			r.malformed = r.at < 64 || len(r.body) == 0
			return r
		}
		r.frag = r.more // an atomic fragment is a packet
	}
	switch r.proto {
	case 6:
		if len(r.body) < 20 || r.body[12] < 0x50 || int(r.body[12]/16)*4 > len(r.body) {
			r.malformed = true
			return r
		}
		r.flags = r.body[13]
	case 17, 58:
		if len(r.body) < 8 {
			r.malformed = true
			return r
		}
		r.icmpType = int(r.body[0])
	default:
		r.malformed = true
		return r
	}
	r.sport, r.dport = read16(r.body, 0), read16(r.body, 2)
	return r
}

func refKey(proto, local, remote int) string { return fmt.Sprint(proto, local, remote) }

// live returns a flow that is not idle for too long.
func (c *classifier) live(proto, local, remote int, now int64) *refFlow {
	idle := int64(90)
	if proto == 6 {
		idle = 3600
	}
	k := refKey(proto, local, remote)
	for _, f := range c.flows[c.placeOf(proto, local, remote)] {
		if f != nil && f.key == k && now-f.seen <= idle {
			return f
		}
	}
	return nil
}

// record says of a flow whose it is now; f is what live returned.
func (c *classifier) record(f *refFlow, proto, local, remote int, ours bool, now int64) {
	n := refFlow{refKey(proto, local, remote), ours, c.version, now}
	if f != nil {
		*f = n
		return
	}
	place := c.placeOf(proto, local, remote)
	set := c.flows[place]
	oldest := -1
	for i, f := range set {
		if f == nil {
			oldest = i
			break
		}
		if oldest < 0 || f.seen < set[oldest].seen {
			oldest = i
		}
	}
	if len(set) < flowWays && (oldest < 0 || set[oldest] != nil) {
		c.flows[place] = append(set, &n)
		return
	}
	set[oldest] = &n
}

func (c *classifier) sweep(now int64) {
	for _, set := range c.flows {
		for i, f := range set {
			if f != nil && now-f.seen > 3600 {
				set[i] = nil
			}
		}
	}
}

// first returns the first fragment that followers of id may join.
func (c *classifier) first(id uint32, now int64) *refFirst {
	if f := c.firsts[c.slotOf(id)]; f != nil && f.id == id && now-f.seen <= 5 {
		return f
	}
	return nil
}

func (c *classifier) admit(p, peer, own []byte, now int64) dropReason {
	switch {
	case string(p[8:24]) != string(peer):
		return dropInSource
	case string(p[24:40]) != string(own):
		return dropInDestination
	}
	r := readPacket(p)
	if r.malformed {
		return dropInHeader
	}
	if r.frag && r.at > 0 {
		f := c.first(r.id, now)
		if f == nil {
			return dropInFragment
		}
		if r.at < f.end {
			return dropInHeader
		}
		return parsed
	}
	v := c.transport(r, peer, own, now)
	if v == parsed && r.frag {
		end := len(r.body)
		if f := c.first(r.id, now); f != nil {
			end = max(end, f.end)
		}
		c.firsts[c.slotOf(r.id)] = &refFirst{r.id, end, now}
	}
	return v
}

func (c *classifier) transport(r refPacket, peer, own []byte, now int64) dropReason {
	if r.proto == 58 {
		return c.icmp(r, peer, own, now)
	}
	if r.proto == 17 && !r.frag && read16(r.body, 4) != len(r.body) {
		return dropInHeader
	}
	f := c.live(r.proto, r.dport, r.sport, now)
	if c.in.Allows(uint8(r.proto), uint16(r.dport)) {
		if f == nil || !f.ours {
			c.record(f, r.proto, r.dport, r.sport, false, now)
		}
		return parsed
	}
	if r.proto == 6 && r.flags&tuntest.SYN != 0 && r.flags&tuntest.ACK == 0 {
		return dropInScope
	}
	if f == nil || !f.ours || f.version != c.version {
		return dropInScope
	}
	f.seen = now
	return parsed
}

func (c *classifier) icmp(r refPacket, peer, own []byte, now int64) dropReason {
	if r.icmpType == 128 || r.icmpType == 129 {
		return parsed
	}
	q := r.body[8:]
	if r.icmpType < 1 || r.icmpType > 4 || r.frag || len(q) < 44 || q[0]/16 != 6 ||
		string(q[8:24]) != string(own) || string(q[24:40]) != string(peer) {
		return dropInICMP
	}
	switch q[6] {
	case 6, 17:
		if f := c.live(int(q[6]), read16(q, 40), read16(q, 42), now); f != nil && f.version == c.version {
			return parsed
		}
	case 58:
		if q[40] == 128 || q[40] == 129 {
			return parsed
		}
	}
	return dropInICMP
}

func (c *classifier) sent(p []byte, now int64) dropReason {
	r := readPacket(p)
	switch {
	case r.malformed:
		return dropOutVersion
	case r.frag && r.at > 0 || r.proto == 58:
		return parsed
	}
	f := c.live(r.proto, r.sport, r.dport, now)
	if c.out.Allows(uint8(r.proto), uint16(r.dport)) {
		opens := r.proto == 6 && r.flags&tuntest.SYN != 0 && r.flags&tuntest.ACK == 0
		lost := f == nil && r.proto == 6 && !opens && r.sport < 32768
		if !lost && (f == nil || f.ours || opens) {
			c.record(f, r.proto, r.sport, r.dport, true, now)
		}
		return parsed
	}
	if c.in.Allows(uint8(r.proto), uint16(r.sport)) || f != nil && f.version == c.version {
		return parsed
	}
	return dropOutScope
}

// generator draws packets that are nearly right.
type generator struct{ *rand.Rand }

func (g generator) pick(n ...int) int { return n[g.IntN(len(n))] }

// port draws one of few ports, so that packets meet flows, and sometimes any, so
// that the tables fill up.
func (g generator) port() uint16 {
	return uint16(g.pick(0, 7, 8, 53, 80, 5000, 5001, 40000, 80, 7, g.IntN(65536)))
}

func (g generator) packet(from, to uint32, depth int) []byte {
	switch g.IntN(12) {
	case 0:
		from = uint32(g.pick(us, them, other))
	case 1:
		to = uint32(g.pick(us, them, other))
	}
	var p []byte
	switch g.IntN(10) {
	case 0, 1, 2:
		p = datagram(from, g.port(), to, g.port(), g.IntN(20)).Complete()
	case 3, 4, 5:
		s := segment(from, g.port(), to, g.port(), uint8(g.pick(0, 2, 16, 18, 24, 17, g.IntN(256))), g.IntN(20))
		s.Options = make([]byte, 4*g.pick(0, 0, 3))
		p = s.Complete()
	case 6:
		var quote []byte
		if depth == 0 {
			quote = g.packet(to, from, 1)
		}
		p = icmp(from, to, uint8(g.pick(1, 2, 3, 4, 128, 129, 133, 137, g.IntN(256))), 0, quote)
	case 7:
		p = raw(from, to, uint8(g.pick(0, 43, 44, 50, 51, 59, 60, 41, 4, g.IntN(256))), make([]byte, g.IntN(64)))
	default:
		part := g.packet(from, to, 1)[40:]
		part = append(part, make([]byte, 8*g.IntN(20))...)
		if g.IntN(4) > 0 {
			part = part[:len(part)&^7]
		}
		at := 0
		if g.IntN(2) == 0 {
			at = g.pick(64, 72, 80, 128, 256, 1200, 65528, 8*g.IntN(8192))
		}
		p = fragment(from, to, uint8(g.pick(6, 17, 17, 58, 0, 44)), uint32(g.IntN(4)), at, g.IntN(3) > 0, part)
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

// The firewall and the slow classifier agree on every generated packet, in both
// directions, while time passes, grants change and the tables overflow. 10^7
// packets with PILOT_HOSTILE=1.
func TestHostileFirewallReference(t *testing.T) {
	packets := 100_000
	if os.Getenv("PILOT_HOSTILE") != "" {
		packets = 10_000_000
	}
	r := newRig(us, &sinkDevice{})
	f, peer := r.firewall, r.know(them)
	own := f.own
	gen := generator{rand.New(rand.NewPCG(7, 7))}
	c := newClassifier(f, peer)
	pol := &policy{}
	now := time.Hour
	var h header
	seen := map[dropReason]int{}
	for i := range packets {
		switch gen.IntN(200) {
		case 0:
			now += time.Duration(gen.IntN(int(40 * time.Second)))
			if gen.IntN(200) == 0 {
				now += time.Duration(gen.IntN(int(3 * time.Hour)))
			}
		case 1:
			scopes := []string{"none", "7", "7,80/tcp", "53/udp,5000", "all", "80,5000-5001"}
			c.version++
			c.in, c.out = scope(t, scopes[gen.IntN(6)]), scope(t, scopes[gen.IntN(6)])
			pol = &policy{version: uint64(c.version), in: c.in, out: c.out}
		case 2:
			f.sweep(now)
			c.sweep(int64(now / flowTick))
		}
		if gen.IntN(3) == 0 {
			p := gen.packet(us, them, 0)
			got, want := f.sent(p, peer, pol, &h, now), c.sent(p, int64(now/flowTick))
			if got != want {
				t.Fatalf("packet %d out: %s, reference says %s\n%x", i, name(got), name(want), p)
			}
			continue
		}
		p := gen.packet(them, us, 0)
		got, want := f.admit(p, peer, pol, &h, now), c.admit(p, peer.ula[:], own[:], int64(now/flowTick))
		if got != want {
			t.Fatalf("packet %d in: %s, reference says %s\n%x", i, name(got), name(want), p)
		}
		seen[got]++
	}
	for _, r := range []dropReason{parsed, dropInSource, dropInDestination, dropInHeader, dropInFragment, dropInICMP, dropInScope} {
		if seen[r] < packets/200 {
			t.Errorf("only %d packets came to %s", seen[r], name(r))
		}
	}
}

// Whatever a peer puts into a packet, the classifier and the firewall agree and
// nothing is read beyond its end.
func FuzzFirewall(f *testing.F) {
	gen := generator{rand.New(rand.NewPCG(8, 8))}
	for range 50 {
		f.Add(gen.packet(them, us, 0)[40:], uint8(gen.pick(0, 6, 17, 44, 58)))
	}
	r := newRig(us, &sinkDevice{})
	peer := r.know(them)
	own := r.firewall.own
	f.Fuzz(func(t *testing.T, body []byte, proto uint8) {
		if len(body) > 1400 {
			return
		}
		p := raw(them, us, proto, body)
		fw := &firewall{own: own, flows: r.firewall.flows, frags: newFragTable()}
		fw.flows.sweep(0, true)
		c := newClassifier(fw, peer)
		c.in, c.out = scope(t, "7,80/tcp"), trust.AllPorts
		pol := &policy{in: c.in, out: c.out}
		var h header
		if got, want := fw.admit(p, peer, pol, &h, time.Hour), c.admit(p, peer.ula[:], own[:], 1800); got != want {
			t.Errorf("%s, reference says %s", name(got), name(want))
		}
	})
}
