package overlay

import (
	"context"
	"crypto/rand"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/stun"
	"github.com/pilotnet/pilot/tun"
)

// blank is what an opener carries: nothing that anybody answers.
var blank = []byte{0}

// open sends a packet that opens our NATs and dies before the peer's. Where the
// system cannot do that, nothing is sent.
func (l *loop) open(p natt.Path, ttl int) {
	if conn, ok := l.socket(p.Socket).(natt.TTLWriter); ok {
		if _, err := conn.WriteTTL([]natt.Message{{Buf: blank, Addr: p.Remote}}, ttl); err != nil {
			l.drops.add(dropOutSend)
		}
	}
}

// whereabouts asks the server of a relay channel to say where it sees the peer. Whoever
// asks may be known to the peer, so this is done only for peers that have a
// session. Servers that do not know the question are silent, which says nothing
// about the way to them: the ladder is not told.
func (l *link) whereabouts(p natt.Path) {
	for _, leg := range l.legs {
		if v := leg.visitor; v.Channel() == p.Channel && v.host.owns(p) && v.host.socket == 0 {
			if b := v.Ask(l.loop.now().wall); b != nil {
				l.loop.toServer(v.host, b)
			}
			return
		}
	}
	for _, h := range l.loop.servers {
		if h.host.owns(p) && h.host.socket == 0 {
			if b := h.machine.Reveal(p.Channel); b != nil {
				l.loop.toServer(h.host, b)
			}
			return
		}
	}
}

// located takes a server's word about the other end of a channel of our own server.
func (l *loop) located(now instant, h *serverHost, channel uint64, addr netip.AddrPort) {
	for _, k := range l.links {
		for p := range k.seen {
			if p.Channel == channel && h.owns(p) {
				k.agent.Attested(now.wall, p, addr)
				k.advance(now)
				return
			}
		}
	}
}

// setFacts takes the outcome of a survey.
func (l *loop) setFacts(now instant, f natt.Facts) {
	l.facts, l.surveyed = f, now.wall
	for _, k := range l.links {
		k.agent.SetTraits(now.wall, f.Traits())
		if k.active != nil {
			k.advance(now)
		}
	}
}

// A pool is the sockets that one link has opened for a peer whose packets could
// not be let in otherwise. Those that became paths outlive the search.
type pool struct {
	link    *link
	alarm   alarm
	scouts  map[uint16]*scout
	order   []uint16
	to      natt.Path
	base    uint16
	query   stun.Query
	sent    int // openers, over all rounds
	waiting bool
	large   atomic.Int32
}

// A scout reads one socket of a pool, with little memory until the peer is heard
// there.
type scout struct {
	conn natt.PacketConn
	kept atomic.Bool
}

const (
	openersAtOnce = 64
	openersEvery  = 5 * time.Millisecond
	countWait     = 250 * time.Millisecond
	scoutBuffer   = 4 << 10
	scoutsLarge   = 4 // that may have large buffers before it is known which stay
	scoutBatch    = 4
	poolLeast     = 16
)

// newScout is a reader like any other, with fewer or smaller buffers.
func newScout(p *plane, conn natt.PacketConn, number uint16, batch, size int) *inbound {
	in := &inbound{
		plane: p, conn: conn, number: number, merge: tun.NewMerger(p.device.Offload()),
		msgs: make([]natt.Message, batch), joined: make([]byte, 0, 2*maxHalf),
	}
	for i := range in.msgs {
		in.msgs[i].Buf = make([]byte, size)
	}
	return in
}

// openPool opens sockets, counts where the NAT counts, and then lets the sockets
// send openers a few at a time.
func (l *link) openPool(now instant, a *natt.Action) {
	l.prunePool(now)
	p := l.pool
	if p == nil {
		p = &pool{link: l, scouts: map[uint16]*scout{}}
		p.alarm.ring = p.step
		l.pool = p
	}
	p.to, p.order, p.base, p.sent, p.waiting = a.Path, nil, 0, 0, false
	var conns []natt.PacketConn
	for range a.Pool.Sockets {
		conn, err := l.loop.underlay.ListenUDP(0)
		if err != nil {
			l.loop.log.Debug("fewer sockets for a hard NAT than wanted", "have", len(conns), "err", err)
			break
		}
		conns = append(conns, conn)
	}
	numbers, err := l.loop.addSockets(conns)
	if err != nil || len(conns) < min(poolLeast, int(a.Pool.Sockets)) {
		l.loop.removeSockets(numbers)
		for _, c := range conns {
			c.Close()
		}
		l.agent.Pooled(now.wall, natt.Pool{})
		return
	}
	p.order = numbers
	for i, n := range numbers {
		s := &scout{conn: conns[i]}
		p.scouts[n] = s
		l.loop.jobs.do(func(context.Context) { p.read(s, n) })
	}
	l.loop.alarms.set(&p.alarm, now.wall)
	if a.Count {
		p.count(now)
	}
}

// count asks a server of ours which port the NAT gives out now.
func (p *pool) count(now instant) {
	l := p.link.loop
	for _, h := range l.servers {
		to, ok := h.host.addr()
		if !ok || h.host.ladder.Rung().Stream() {
			continue
		}
		// crypto/rand never fails (it ends the process instead).
		_, _ = rand.Read(p.query.ID[:])
		p.waiting = true
		l.datagramVia(p.order[0], to, stun.AppendQuery(nil, p.query))
		l.alarms.set(&p.alarm, now.wall.Add(countWait))
		return
	}
}

// aim has every socket send one packet.
func (l *link) aim(a *natt.Action) {
	p := l.pool
	if p == nil {
		return
	}
	for _, n := range p.order {
		path := natt.Path{Remote: a.Path.Remote, Socket: n}
		if a.TTL > 0 {
			l.loop.open(path, a.TTL)
			continue
		}
		var token natt.Token
		// crypto/rand never fails (it ends the process instead).
		_, _ = rand.Read(token[:])
		l.loop.send.item(l.peer, l.over(path), appendChallenge(nil, itemChallenge, token, 0), 0)
		l.loop.send.flush()
	}
}

// counted takes the server's answer.
func (p *pool) counted(now instant, r stun.Reply) {
	if p.waiting && r.ID == p.query.ID {
		p.base = r.Mapped.Port()
		p.step(now)
	}
}

// step sends the next openers, and tells the agent after the last.
func (p *pool) step(now instant) {
	l := p.link
	p.waiting = false // if it still does it has done so for long enough
	ttls := natt.OpenerTTL()
	if p.to.Remote.Port() == 0 {
		p.sent = len(p.order) * len(ttls) // it is not known yet where to
	}
	for range openersAtOnce {
		if p.sent == len(p.order)*len(ttls) {
			break
		}
		n := p.order[p.sent%len(p.order)]
		l.loop.open(natt.Path{Remote: p.to.Remote, Socket: n}, ttls[p.sent/len(p.order)])
		p.sent++
	}
	if p.sent < len(p.order)*len(ttls) {
		l.loop.alarms.set(&p.alarm, now.wall.Add(openersEvery))
		return
	}
	l.loop.alarms.set(&p.alarm, time.Time{})
	l.agent.Pooled(now.wall, natt.Pool{Sockets: uint16(len(p.order)), Base: p.base})
	l.advance(now)
}

// read is the reader of one socket.
func (p *pool) read(s *scout, number uint16) {
	l := p.link.loop
	in := newScout(l.plane, s.conn, number, 1, scoutBuffer)
	for {
		n, err := s.conn.ReadBatch(in.msgs)
		if err != nil {
			return // closed, or good for nothing
		}
		if m := &in.msgs[0]; n > 0 && m.N > 0 && m.Segment == 0 && stun.Is(m.Buf[:m.N]) {
			if r, err := stun.ParseReply(m.Buf[:m.N]); err == nil && in.snapshot.Load().servers[m.Addr] {
				l.post(func(now instant) { p.counted(now, r) })
			}
			continue
		}
		in.batch(in.msgs[:n])
		if in.heard && (s.kept.Load() || p.large.Add(1) <= scoutsLarge) {
			// What ends the reader of a socket that is closed is no error.
			_ = newScout(l.plane, s.conn, number, scoutBatch, natt.MaxRun).run()
			return
		}
	}
}

// prunePool closes the sockets that the agent does not use.
func (l *link) prunePool(now instant) {
	p := l.pool
	if p == nil {
		return
	}
	l.loop.alarms.set(&p.alarm, time.Time{})
	p.waiting = false
	var gone []uint16
	for n, s := range p.scouts {
		if l.agent.Uses(n) {
			s.kept.Store(true)
			continue
		}
		delete(p.scouts, n)
		gone = append(gone, n)
		s.conn.Close()
	}
	l.loop.removeSockets(gone)
	if len(p.scouts) == 0 {
		l.pool = nil
	}
}

// closePool closes all of them.
func (l *link) closePool(now instant) {
	l.agent.Close(now.wall)
	p := l.pool
	if p == nil {
		return
	}
	l.pool = nil
	l.loop.alarms.set(&p.alarm, time.Time{})
	p.waiting = false
	var gone []uint16
	for n, s := range p.scouts {
		gone = append(gone, n)
		s.conn.Close()
	}
	l.loop.removeSockets(gone)
}

// addSockets is addSocket for many.
func (l *loop) addSockets(conns []natt.PacketConn) ([]uint16, error) {
	n := *l.snapshot.Load()
	n.sockets = append(make([]natt.PacketConn, 0, maxSockets), n.sockets...)
	numbers := make([]uint16, 0, len(conns))
	for tries := 0; len(numbers) < len(conns); tries++ {
		if tries == maxSockets {
			return nil, errSockets
		}
		l.lastSocket = l.lastSocket%(maxSockets-1) + 1
		for len(n.sockets) <= int(l.lastSocket) {
			n.sockets = append(n.sockets, nil)
		}
		if n.sockets[l.lastSocket] == nil {
			n.sockets[l.lastSocket] = conns[len(numbers)]
			numbers = append(numbers, l.lastSocket)
		}
	}
	l.snapshot.Store(&n)
	return numbers, nil
}

// removeSockets is removeSocket for many.
func (l *loop) removeSockets(numbers []uint16) {
	if len(numbers) == 0 {
		return
	}
	n := *l.snapshot.Load()
	n.sockets = append([]natt.PacketConn(nil), n.sockets...)
	for _, i := range numbers {
		n.sockets[i] = nil
	}
	l.snapshot.Store(&n)
}
