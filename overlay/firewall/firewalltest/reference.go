package firewalltest

import (
	"encoding/binary"
	"fmt"

	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A Reference is the firewall towards one peer as the protocol page says it, slow
// and written apart from it: maps and wall-clock arithmetic instead of packed
// words. Of the firewall's tables it knows only which keys share a place, which
// their random seeds decide; that both forget the same entry when a place is full
// is checked like everything else. Times are in seconds / 2, as in the tables.
type Reference struct {
	In, Out trust.Scope
	Version int // of the policy

	fw     *firewall.Firewall
	own    [16]byte
	peer   *firewall.Peer
	flows  map[uint64][]*flow
	firsts map[uint64]*first
}

// NewReference makes the reference of fw, the firewall of own, towards a peer.
func NewReference(fw *firewall.Firewall, own [16]byte, peer *firewall.Peer) *Reference {
	return &Reference{fw: fw, own: own, peer: peer, flows: map[uint64][]*flow{}, firsts: map[uint64]*first{}}
}

func (c *Reference) place(proto, local, remote int) uint64 {
	return c.fw.FlowPlace(c.peer, uint8(proto), uint16(local), uint16(remote))
}

type flow struct {
	key     string
	ours    bool
	version int
	seen    int64 // ticks
}

type first struct {
	id   uint32
	end  int
	seen int64
}

type packet struct {
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

func readPacket(p []byte) (r packet) {
	r.proto, r.body = int(p[6]), p[40:]
	if r.proto == 44 {
		if len(r.body) < 8 {
			return packet{malformed: true}
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

func key(proto, local, remote int) string { return fmt.Sprint(proto, local, remote) }

// live returns a flow that is not idle for too long.
func (c *Reference) live(proto, local, remote int, now int64) *flow {
	idle := int64(90)
	if proto == 6 {
		idle = 3600
	}
	k := key(proto, local, remote)
	for _, f := range c.flows[c.place(proto, local, remote)] {
		if f != nil && f.key == k && now-f.seen <= idle {
			return f
		}
	}
	return nil
}

// record says of a flow whose it is now; f is what live returned.
func (c *Reference) record(f *flow, proto, local, remote int, ours bool, now int64) {
	n := flow{key(proto, local, remote), ours, c.Version, now}
	if f != nil {
		*f = n
		return
	}
	place := c.place(proto, local, remote)
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
	if len(set) < 8 && (oldest < 0 || set[oldest] != nil) {
		c.flows[place] = append(set, &n)
		return
	}
	set[oldest] = &n
}

// Sweep goes with [firewall.Firewall.Sweep].
func (c *Reference) Sweep(now int64) {
	for _, set := range c.flows {
		for i, f := range set {
			if f != nil && now-f.seen > 3600 {
				set[i] = nil
			}
		}
	}
}

// first returns the first fragment that followers of id may join.
func (c *Reference) firstOf(id uint32, now int64) *first {
	if f := c.firsts[c.fw.FragmentPlace(c.peer, id)]; f != nil && f.id == id && now-f.seen <= 5 {
		return f
	}
	return nil
}

// Admit is what [firewall.Firewall.Admit] must say of a packet, now ticks of two
// seconds after the boot.
func (c *Reference) Admit(p []byte, now int64) firewall.Verdict {
	switch {
	case string(p[8:24]) != string(c.peer.ULA[:]):
		return firewall.BadSource
	case string(p[24:40]) != string(c.own[:]):
		return firewall.BadDestination
	}
	r := readPacket(p)
	if r.malformed {
		return firewall.BadHeader
	}
	if r.frag && r.at > 0 {
		f := c.firstOf(r.id, now)
		if f == nil {
			return firewall.StrayFragment
		}
		if r.at < f.end {
			return firewall.BadHeader
		}
		return firewall.Pass
	}
	v := c.transport(r, now)
	if v == firewall.Pass && r.frag {
		end := len(r.body)
		if f := c.firstOf(r.id, now); f != nil {
			end = max(end, f.end)
		}
		c.firsts[c.fw.FragmentPlace(c.peer, r.id)] = &first{r.id, end, now}
	}
	return v
}

func (c *Reference) transport(r packet, now int64) firewall.Verdict {
	if r.proto == 58 {
		return c.icmp(r, now)
	}
	if r.proto == 17 && !r.frag && read16(r.body, 4) != len(r.body) {
		return firewall.BadHeader
	}
	f := c.live(r.proto, r.dport, r.sport, now)
	if c.In.Allows(uint8(r.proto), uint16(r.dport)) {
		if f == nil || !f.ours {
			c.record(f, r.proto, r.dport, r.sport, false, now)
		}
		return firewall.Pass
	}
	if r.proto == 6 && r.flags&tuntest.SYN != 0 && r.flags&tuntest.ACK == 0 {
		return firewall.OutOfScope
	}
	if f == nil || !f.ours || f.version != c.Version {
		return firewall.OutOfScope
	}
	f.seen = now
	return firewall.Pass
}

func (c *Reference) icmp(r packet, now int64) firewall.Verdict {
	if r.icmpType == 128 || r.icmpType == 129 {
		return firewall.Pass
	}
	q := r.body[8:]
	if r.icmpType < 1 || r.icmpType > 4 || r.frag || len(q) < 44 || q[0]/16 != 6 ||
		string(q[8:24]) != string(c.own[:]) || string(q[24:40]) != string(c.peer.ULA[:]) {
		return firewall.BadICMP
	}
	switch q[6] {
	case 6, 17:
		if f := c.live(int(q[6]), read16(q, 40), read16(q, 42), now); f != nil && f.version == c.Version {
			return firewall.Pass
		}
	case 58:
		if q[40] == 128 || q[40] == 129 {
			return firewall.Pass
		}
	}
	return firewall.BadICMP
}

// Sent is what [firewall.Firewall.Sent] must say.
func (c *Reference) Sent(p []byte, now int64) firewall.Verdict {
	r := readPacket(p)
	switch {
	case r.malformed:
		return firewall.BadHeader
	case r.frag && r.at > 0 || r.proto == 58:
		return firewall.Pass
	}
	f := c.live(r.proto, r.sport, r.dport, now)
	if c.Out.Allows(uint8(r.proto), uint16(r.dport)) {
		opens := r.proto == 6 && r.flags&tuntest.SYN != 0 && r.flags&tuntest.ACK == 0
		lost := f == nil && r.proto == 6 && !opens && r.sport < 32768
		if !lost && (f == nil || f.ours || opens) {
			c.record(f, r.proto, r.sport, r.dport, true, now)
		}
		return firewall.Pass
	}
	if c.In.Allows(uint8(r.proto), uint16(r.sport)) || f != nil && f.version == c.Version {
		return firewall.Pass
	}
	return firewall.OutOfScope
}
