// Package firewall decides which inner packets pass between this agent and one
// peer: default deny in, and answers to what was opened from here. It knows the
// peer's address, its grant and the packet, and neither sessions nor sockets.
//
// A packet from a peer is asked, in this order: is its source the peer's own
// address, its destination ours, the grant still in force, its header one that is
// carried (TCP, UDP or ICMPv6 behind the IPv6 header or one fragment header); then,
// does the grant have the port, or did we open the flow? The flow table (flow.go)
// remembers that; a change of the policy voids its entries, and what the peer had
// opened does not become ours by our own retransmissions.
//
// Nothing allocates, locks or logs. Package firewalltest has a second, slow
// implementation of the same rules, and packets that are nearly right.
package firewall

import (
	"encoding/binary"
	"time"

	"github.com/pilotnet/pilot/trust"
)

// A Verdict is what the firewall says of a packet: that it passes, or why not.
type Verdict uint8

const (
	Pass           Verdict = iota
	BadSource              // in: the inner source is not the peer's address
	BadDestination         // in: the inner destination is not ours
	OutOfScope             // the port is not granted, or the grant has ended
	BadHeader              // an extension header, truncated or overlapping
	StrayFragment          // in: a fragment of nothing admitted
	BadICMP                // in: an ICMPv6 message that is not carried
)

func (v Verdict) String() string {
	return [...]string{"pass", "bad source", "bad destination", "out of scope", "bad header", "stray fragment", "bad ICMPv6"}[v]
}

// A Policy is what one peer may do, compiled from its grant. It is immutable; a
// change of the grant makes another with a higher version.
type Policy struct {
	Version uint64
	In      trust.Scope   // what the peer may reach here
	Out     trust.Scope   // what we may reach there
	Until   time.Duration // on the node's boot clock; 0: no end
}

// Live reports whether the policy is in force. A nil one never is.
func (p *Policy) Live(now time.Duration) bool { return p != nil && (p.Until == 0 || now < p.Until) }

// A Peer is the other side of a tunnel.
type Peer struct {
	Node uint32   // its node ID: keeps the flows of peers apart
	ULA  [16]byte // the one inner address that it may use
}

// A Firewall decides on inner packets. It is safe for concurrent use.
type Firewall struct {
	own   [16]byte // this agent's ULA
	flows *flowTable
	frags *fragTable
	swept time.Duration // by the one who calls Sweep
}

// dialPort is the lowest port that a host gives to those who connect and name
// none: of Linux; others begin higher.
const dialPort = 32768

// New makes the firewall of the agent with the address own.
func New(own [16]byte) *Firewall {
	return &Firewall{own: own, flows: newFlowTable(), frags: newFragTable()}
}

// Sweep forgets what has been idle for too long. One goroutine calls it, every
// minute; if the host slept longer than the tables' short clocks can tell,
// everything goes.
func (f *Firewall) Sweep(now time.Duration) {
	all := now-f.swept > sweepAll
	f.swept = now
	f.flows.sweep(tick(now), all)
	f.frags.sweep(tick(now), all)
}

const sweepAll = 24 * time.Hour

// Admit decides on a packet that came out of a session with the peer, in the
// order of the protocol page: source, destination, then scope, then flows that we
// opened. The caller has checked that p is one whole IPv6 packet.
func (f *Firewall) Admit(p []byte, from *Peer, pol *Policy, h *Header, now time.Duration) Verdict {
	if [16]byte(p[8:24]) != from.ULA {
		return BadSource
	}
	if [16]byte(p[24:40]) != f.own {
		return BadDestination // else the kernel would forward it into the LAN
	}
	if !pol.Live(now) {
		return OutOfScope
	}
	if r := h.parse(p); r != Pass {
		return r
	}
	t := tick(now)
	if h.fragment == laterFragment {
		return f.frags.follower(from.Node, h.fragID, h.fragAt, t)
	}
	r := f.admitTransport(from, pol, h, t)
	if r == Pass && h.fragment == firstFragment {
		f.frags.admit(from.Node, h.fragID, uint16(len(h.body)/8), t)
	}
	return r
}

func (f *Firewall) admitTransport(from *Peer, pol *Policy, h *Header, t uint16) Verdict {
	if h.proto == protoICMPv6 {
		return f.admitICMP(from, pol, h, t)
	}
	if h.proto == trust.ProtoUDP && h.fragment == notFragment && int(binary.BigEndian.Uint16(h.body[4:])) != len(h.body) {
		return BadHeader
	}
	k := flowKey{peer: from.Node, proto: h.proto, local: h.dst, remote: h.src}
	opens := h.proto == trust.ProtoTCP && h.opensTCP()
	memo := memoOf(h)
	if !opens && memo.holds(k, false, pol, t) {
		return Pass
	}
	if pol.In.Allows(h.proto, h.dst) {
		memo.keep(k, false, pol, t, f.flows.admitted(k, pol.Version, t))
		return Pass
	}
	if opens {
		return OutOfScope
	}
	if e, ok := f.flows.inbound(k, pol.Version, t); ok {
		memo.keep(k, false, pol, t, e)
		return Pass
	}
	return OutOfScope
}

// ICMPv6 types (RFC 4443).
const (
	icmpUnreachable  = 1
	icmpTooBig       = 2
	icmpTimeExceeded = 3
	icmpParameter    = 4
	icmpEchoRequest  = 128
	icmpEchoReply    = 129
)

// admitICMP lets echo pass with any scope and errors only when they quote a
// packet of a flow between the two; neighbour discovery, router and multicast
// messages have no business in a tunnel.
func (f *Firewall) admitICMP(from *Peer, pol *Policy, h *Header, t uint16) Verdict {
	switch h.src >> 8 {
	case icmpEchoRequest, icmpEchoReply:
		return Pass
	case icmpUnreachable, icmpTooBig, icmpTimeExceeded, icmpParameter:
	default:
		return BadICMP
	}
	q := h.body[8:]
	if h.fragment != notFragment || len(q) < ipv6HeaderSize+4 || q[0]>>4 != 6 ||
		[16]byte(q[8:24]) != f.own || [16]byte(q[24:40]) != from.ULA {
		return BadICMP
	}
	switch q[6] {
	case trust.ProtoTCP, trust.ProtoUDP:
		k := flowKey{peer: from.Node, proto: q[6],
			local: binary.BigEndian.Uint16(q[40:]), remote: binary.BigEndian.Uint16(q[42:])}
		if f.flows.known(k, pol.Version, t) {
			return Pass
		}
	case protoICMPv6:
		if q[40] == icmpEchoRequest || q[40] == icmpEchoReply {
			return Pass
		}
	}
	return BadICMP
}

// Sent decides on a packet that the kernel wants to send to the peer, and
// remembers its flow. The grant of the other side binds at the other side; it
// is looked at here only so that a program gets an error at once instead of
// silence.
//
// A TCP connection whose beginning was not seen, because it is older than this
// process or than the table's memory, counts as ours only if its local port is
// one that hosts give to those who connect. Otherwise what our side sends again
// on a connection that the peer made to a port it has lost since would, after a
// restart, let the peer back in.
func (f *Firewall) Sent(p []byte, to *Peer, pol *Policy, h *Header, now time.Duration) Verdict {
	if !pol.Live(now) {
		return OutOfScope
	}
	if h.parse(p) != Pass {
		return BadHeader
	}
	if h.fragment == laterFragment || h.proto == protoICMPv6 {
		return Pass
	}
	k := flowKey{peer: to.Node, proto: h.proto, local: h.src, remote: h.dst}
	t := tick(now)
	opens := h.proto == trust.ProtoTCP && h.opensTCP()
	memo := memoOf(h)
	if !opens && memo.holds(k, true, pol, t) {
		return Pass
	}
	if pol.Out.Allows(h.proto, h.dst) {
		ours := h.proto != trust.ProtoTCP || opens || h.src >= dialPort
		if e := f.flows.outbound(k, pol.Version, t, opens, ours); e.at != nil {
			memo.keep(k, true, pol, t, e)
		}
		return Pass
	}
	if pol.In.Allows(h.proto, h.src) || f.flows.known(k, pol.Version, t) {
		return Pass // an answer
	}
	return OutOfScope
}

// FlowPlace names the place in the flow table of a flow with a peer. Flows of one
// place push each other out, the one that has been idle longest first, when there
// are more than eight. It is for those who check the firewall.
func (f *Firewall) FlowPlace(peer *Peer, proto uint8, local, remote uint16) uint64 {
	return f.flows.hash(flowKey{peer.Node, proto, local, remote}) % flowSets
}

// FragmentPlace names the place of a fragmented packet, of which there is one in
// each.
func (f *Firewall) FragmentPlace(peer *Peer, id uint32) uint64 {
	return f.frags.hash(peer.Node, id) % uint64(len(f.frags.n))
}
