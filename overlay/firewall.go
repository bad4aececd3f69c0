package overlay

import (
	"encoding/binary"
	"time"

	"github.com/pilotnet/pilot/trust"
)

// A policy is what one peer may do, compiled from its grant. It is immutable;
// a change of the grant publishes another with a higher version.
type policy struct {
	version uint64
	in      trust.Scope   // what the peer may reach here
	out     trust.Scope   // what we may reach there
	until   time.Duration // on the node's boot clock; 0: no end
}

func (p *policy) live(now time.Duration) bool { return p != nil && (p.until == 0 || now < p.until) }

// A firewall decides on inner packets. Default deny in. It allocates nothing
// and is safe for concurrent use.
type firewall struct {
	own   [16]byte // this agent's ULA
	flows *flowTable
	frags *fragTable
	swept time.Duration // by the control loop
}

// dialPort is the lowest port that a host gives to those who connect and name
// none: of Linux; others begin higher.
const dialPort = 32768

func newFirewall(own [16]byte) *firewall {
	return &firewall{own: own, flows: newFlowTable(), frags: newFragTable()}
}

// sweep forgets what has been idle for too long. The control loop calls it every
// minute; if the host slept longer than the tables' short clocks can tell,
// everything goes.
func (f *firewall) sweep(now time.Duration) {
	all := now-f.swept > sweepAll
	f.swept = now
	f.flows.sweep(tick(now), all)
	f.frags.sweep(tick(now), all)
}

const sweepAll = 24 * time.Hour

// admit decides on a packet that came out of a session with the peer, in the
// order of the protocol page: version (checked when the item was cut), source,
// destination, then scope, then flows that we opened.
func (f *firewall) admit(p []byte, from *peer, pol *policy, h *header, now time.Duration) dropReason {
	if [16]byte(p[8:24]) != from.ula {
		return dropInSource
	}
	if [16]byte(p[24:40]) != f.own {
		return dropInDestination // else the kernel would forward it into the LAN
	}
	if !pol.live(now) {
		return dropInScope
	}
	if r := h.parse(p); r != parsed {
		return r
	}
	t := tick(now)
	if h.fragment == laterFragment {
		return f.frags.follower(from.node, h.fragID, h.fragAt, t)
	}
	r := f.admitTransport(from, pol, h, t)
	if r == parsed && h.fragment == firstFragment {
		f.frags.admit(from.node, h.fragID, uint16(len(h.body)/8), t)
	}
	return r
}

func (f *firewall) admitTransport(from *peer, pol *policy, h *header, t uint16) dropReason {
	if h.proto == protoICMPv6 {
		return f.admitICMP(from, pol, h, t)
	}
	if h.proto == protoUDP && h.fragment == notFragment && int(binary.BigEndian.Uint16(h.body[4:])) != len(h.body) {
		return dropInHeader
	}
	k := flowKey{peer: from.node, proto: h.proto, local: h.dst, remote: h.src}
	opens := h.proto == protoTCP && h.opensTCP()
	memo := memoOf(h)
	if !opens && memo.holds(k, false, pol, t) {
		return parsed
	}
	if pol.in.Allows(h.proto, h.dst) {
		memo.keep(k, false, pol, t, f.flows.admitted(k, pol.version, t))
		return parsed
	}
	if opens {
		return dropInScope
	}
	if e, ok := f.flows.inbound(k, pol.version, t); ok {
		memo.keep(k, false, pol, t, e)
		return parsed
	}
	return dropInScope
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
func (f *firewall) admitICMP(from *peer, pol *policy, h *header, t uint16) dropReason {
	switch h.src >> 8 {
	case icmpEchoRequest, icmpEchoReply:
		return parsed
	case icmpUnreachable, icmpTooBig, icmpTimeExceeded, icmpParameter:
	default:
		return dropInICMP
	}
	q := h.body[8:]
	if h.fragment != notFragment || len(q) < ipv6HeaderSize+4 || q[0]>>4 != 6 ||
		[16]byte(q[8:24]) != f.own || [16]byte(q[24:40]) != from.ula {
		return dropInICMP
	}
	switch q[6] {
	case protoTCP, protoUDP:
		k := flowKey{peer: from.node, proto: q[6],
			local: binary.BigEndian.Uint16(q[40:]), remote: binary.BigEndian.Uint16(q[42:])}
		if f.flows.known(k, pol.version, t) {
			return parsed
		}
	case protoICMPv6:
		if q[40] == icmpEchoRequest || q[40] == icmpEchoReply {
			return parsed
		}
	}
	return dropInICMP
}

// sent decides on a packet that the kernel wants to send to the peer, and
// remembers its flow. The grant of the other side binds at the other side; it
// is looked at here only so that a program gets an error at once instead of
// silence.
//
// A TCP connection whose beginning was not seen, because it is older than this
// process or than the table's memory, counts as ours only if its local port is
// one that hosts give to those who connect. Otherwise what our side sends again
// on a connection that the peer made to a port it has lost since would, after a
// restart, let the peer back in.
func (f *firewall) sent(p []byte, to *peer, pol *policy, h *header, now time.Duration) dropReason {
	if !pol.live(now) {
		return dropOutScope
	}
	if h.parse(p) != parsed {
		return dropOutVersion
	}
	if h.fragment == laterFragment || h.proto == protoICMPv6 {
		return parsed
	}
	k := flowKey{peer: to.node, proto: h.proto, local: h.src, remote: h.dst}
	t := tick(now)
	opens := h.proto == protoTCP && h.opensTCP()
	memo := memoOf(h)
	if !opens && memo.holds(k, true, pol, t) {
		return parsed
	}
	if pol.out.Allows(h.proto, h.dst) {
		ours := h.proto != protoTCP || opens || h.src >= dialPort
		if e := f.flows.outbound(k, pol.version, t, opens, ours); e.at != nil {
			memo.keep(k, true, pol, t, e)
		}
		return parsed
	}
	if pol.in.Allows(h.proto, h.src) || f.flows.known(k, pol.version, t) {
		return parsed // an answer
	}
	return dropOutScope
}
