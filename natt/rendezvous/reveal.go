package rendezvous

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// reveal answers a REVEAL: one who reads at its address lets the other end of a
// channel know it, and learns where that end is if it wants that too.
func (r *reader) reveal(m *natt.Message, sess *session, rec relay.Record) {
	from := r.from(m)
	seen := relay.Record{Kind: relay.Seen, Echo: rec.Echo, Proof: r.s.proof(sess.number, m.Addr)}
	switch {
	case rec.Proof != seen.Proof:
		seen.Flags = relay.FlagProve
	case *sess.bind.Load() == from:
		sess.proven.Store(&from)
		seen.Observed = r.s.table.whereVisitor(sess, rec.Echo)
	}
	if b, err := relay.AppendRecord(make([]byte, 0, relay.RecordSize), sess.number, sess.tr, seen); err == nil {
		r.reply(m, b)
	}
}

// proof is what an agent can know only from a SEEN that reached it at addr.
func (s *Server) proof(session uint64, addr netip.AddrPort) uint64 {
	h := hmac.New(sha256.New, s.proofKey[:])
	var b [8 + 16 + 2]byte
	binary.BigEndian.PutUint64(b[:], session)
	ip := addr.Addr().As16()
	copy(b[8:], ip[:])
	binary.BigEndian.PutUint16(b[24:], addr.Port())
	h.Write(b[:])
	return binary.BigEndian.Uint64(h.Sum(nil)) >> 16
}

// whereVisitor notes that a target wants its visitor to know where it is, and returns
// where the visitor is, if that wants the same: zero otherwise.
func (t *table) whereVisitor(sess *session, number uint64) netip.AddrPort {
	t.mu.RLock()
	e, ok := t.ends[number]
	current := t.homes[sess.agent] == sess
	t.mu.RUnlock()
	if !ok || !current || !e.isTarget || e.target != sess.agent {
		return netip.AddrPort{}
	}
	e.revealed.Store(true)
	if !e.asked.Load() || !e.proven.Load() {
		return netip.AddrPort{}
	}
	return e.visitor.datagrams()
}

// whereTarget returns where the target of a channel is, if it wants that and has shown that it reads there.
func (c *channel) whereTarget(home *session) netip.AddrPort {
	if home == nil || !c.revealed.Load() {
		return netip.AddrPort{}
	}
	at := home.proven.Load()
	if at == nil || *at != *home.bind.Load() {
		return netip.AddrPort{}
	}
	return at.datagrams()
}

// datagrams is the remote address where UDP comes from there: what is at the other end of a TLS
// connection may be a proxy.
func (b *binding) datagrams() netip.AddrPort {
	if b.sock.carrier != nil {
		return netip.AddrPort{}
	}
	return b.addr
}
