package rendezvous

import (
	"net/netip"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/stun"
)

// stun answers a STUN Binding request. Its source is not proven, so it is rate
// limited and the answer never longer than the request asks for. A server that
// listens on two addresses and two ports also answers the questions of RFC 5780.
func (r *reader) stun(m *natt.Message, d []byte) {
	if !stun.Is(d) || !r.s.stuns.allow(r.now, m.Addr.Addr()) {
		r.s.count.malformed.Add(1)
		return
	}
	if q, ok := stun.ParseQuery(d); ok && !(q.ResponsePort != 0 && r.sock.carrier != nil) {
		from, other := r.s.alternate(r.sock, q)
		if q.ResponsePort != 0 && (from != nil || !q.ChangeIP && !q.ChangePort) {
			r.elsewhere(m, q, from, other)
			return
		}
		if from != nil {
			r.s.count.stun.Add(1)
			b := stun.AppendReply(make([]byte, 0, stun.QuerySize), stun.Reply{ID: q.ID, Mapped: m.Addr, Other: other})
			if from == r.sock {
				r.reply(m, b)
			} else {
				r.send(from, natt.Message{Buf: b, Addr: m.Addr})
			}
			return
		}
	}
	b, ok := stun.Answer(make([]byte, 0, stun.MaxAnswer), d, m.Addr)
	if !ok {
		r.s.count.malformed.Add(1)
		return
	}
	r.s.count.stun.Add(1)
	r.reply(m, b)
}

// elsewhere answers to another port of the address that a query came from, by which
// an agent finds out how long its NAT keeps a mapping, and whether a mapping that
// its gateway made lets packets in (RFC 5780 section 7.5). The answer is shorter than
// the query, and rate limited like all.
func (r *reader) elsewhere(m *natt.Message, q stun.Query, from *socket, other netip.AddrPort) {
	r.s.count.stun.Add(1)
	b := make([]byte, 0, stun.QuerySize)
	if other.IsValid() {
		b = stun.AppendReply(b, stun.Reply{ID: q.ID, Mapped: m.Addr, Other: other})
	} else {
		b = stun.AppendMapped(b, q.ID, m.Addr)
	}
	to := *m
	to.Addr = netip.AddrPortFrom(m.Addr.Addr(), q.ResponsePort)
	if from == nil || from == r.sock {
		r.reply(&to, b)
	} else {
		r.send(from, natt.Message{Buf: b, Addr: to.Addr})
	}
}

// alternate finds the socket that a query wants its answer from, and the
// server's other address: another IP address and another port, of the same
// family. It returns nil if the server has none, or listens on all addresses.
func (s *Server) alternate(at *socket, q stun.Query) (from *socket, other netip.AddrPort) {
	here := at.conn.LocalAddr()
	if here.Addr().IsUnspecified() {
		return nil, other
	}
	for _, o := range s.sockets {
		there := o.conn.LocalAddr()
		if there.Addr().IsUnspecified() || there.Addr().Is4() != here.Addr().Is4() {
			continue
		}
		if there.Addr() != here.Addr() && there.Port() != here.Port() {
			other = there
		}
	}
	if !other.IsValid() {
		return nil, other
	}
	for _, o := range s.sockets {
		there := o.conn.LocalAddr()
		ip, port := here.Addr(), here.Port()
		if q.ChangeIP {
			ip = other.Addr()
		}
		if q.ChangePort {
			port = other.Port()
		}
		if there == netip.AddrPortFrom(ip, port) {
			return o, other
		}
	}
	return nil, other
}
