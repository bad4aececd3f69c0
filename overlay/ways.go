package overlay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// ways is how a serverHost is reached: by UDP, or where that is blocked by a
// carrier. The ladder decides; ways does what it says. Homes and legs send through
// ask and never see the difference, except that their channels move.
type ways struct {
	ladder   *relay.Ladder
	alarm    alarm
	port     uint16         // of the UDP way in use
	socket   uint16         // of the carrier in use; 0: UDP
	remote   netip.AddrPort // that this carrier stands for
	proxied  bool           // there is a proxy
	standIn  bool           // the name cannot be resolved here, only by the proxy
	carriers map[int]*carrying
	probers  map[uint16]*relay.Visitor // by port
	failed   map[relay.Rung]string     // why the last attempt on a rung came to nothing
	warning  string                    // about the certificate
}

// A carrying is a carrier that is being opened (number 0) or open.
type carrying struct {
	rung   relay.Rung
	cancel context.CancelFunc
	conn   *relay.Carrier
	remote netip.AddrPort
	number uint16
}

// standIn is the address that a server has in paths if only a proxy can resolve its
// name: one of 100::/64, where nothing is ever sent (RFC 6666).
func standIn(s crypto.Server) netip.Addr {
	sum := sha256.Sum256([]byte(s.String()))
	b := [16]byte{1}
	copy(b[8:], sum[:8])
	return netip.AddrFrom16(b)
}

const (
	udpTLS      = 443
	dialTimeout = 5 * time.Second
	maxSockets  = 1 << 10
	// spareIdle is how long a carrier to a server that is no home of ours stays
	// open for nobody.
	spareIdle = 3 * time.Minute
)

func (l *loop) newWays(h *serverHost) ways {
	proxy, err := relay.ProxyFor(l.proxies.Find, h.server)
	w := ways{
		ladder:   relay.NewLadder(relay.LadderConfig{Port: h.server.Port, Proxy: proxy != nil}),
		port:     h.server.Port,
		proxied:  proxy != nil,
		carriers: map[int]*carrying{},
		probers:  map[uint16]*relay.Visitor{},
		failed:   map[relay.Rung]string{},
	}
	if err != nil {
		w.failed[relay.RungProxy] = strings.TrimPrefix(err.Error(), "relay: ")
	}
	w.ladder.Hurry(relay.Rung(l.rung.Load()))
	w.alarm.ring = func(now instant) { l.climb(now, h) }
	return w
}

// at is where to send to now: the way in use.
func (h *serverHost) at() (natt.Path, bool) {
	if h.socket != 0 {
		return natt.Path{Remote: h.remote, Socket: h.socket}, true
	}
	a, ok := h.addr()
	return natt.Path{Remote: netip.AddrPortFrom(a.Addr(), h.port)}, ok
}

// owns says whether a path is one to this server, now or a moment ago.
func (h *serverHost) owns(p natt.Path) bool {
	if p.Socket == 0 {
		return slices.Contains(h.addrs, p.Remote.Addr()) && (p.Remote.Port() == h.server.Port || p.Remote.Port() == udpTLS)
	}
	for _, c := range h.carriers {
		if c.number == p.Socket {
			return true
		}
	}
	return false
}

// current says whether a path begins as the way in use does.
func (h *serverHost) current(p natt.Path) bool {
	at, ok := h.at()
	return ok && p.Remote == at.Remote && p.Socket == at.Socket
}

// toServer sends a datagram to the server by the way in use.
func (l *loop) toServer(h *serverHost, b []byte) bool {
	at, ok := h.at()
	if ok && !(h.standIn && at.Socket == 0) {
		l.datagramVia(at.Socket, at.Remote, b)
	}
	return ok
}

// ask sends what the server answers.
func (l *loop) ask(now instant, h *serverHost, b []byte) {
	if l.toServer(h, b) {
		h.ladder.Asked(now.wall)
		l.alarms.set(&h.alarm, h.ladder.Next())
	}
}

// heard takes note that the server itself answered over a path.
func (l *loop) heard(now instant, h *serverHost, p natt.Path) {
	rung := relay.RungUDP
	switch {
	case p.Socket != 0 && p.Socket != h.socket:
		return // a carrier on its way out
	case p.Socket != 0:
		rung = h.ladder.Rung()
	case p.Remote.Port() != h.server.Port:
		rung = relay.RungUDP443
	}
	delete(h.failed, rung)
	h.ladder.Heard(now.wall, rung)
	l.climb(now, h)
}

// climb does what the ladder of a server wants now.
func (l *loop) climb(now instant, h *serverHost) {
	for _, a := range h.ladder.Advance(now.wall) {
		switch a.Kind {
		case relay.LadderProbe:
			l.probe(now, h, a.Port)
		case relay.LadderDial:
			l.dial(h, a)
		case relay.LadderUse:
			l.use(now, h, a)
		case relay.LadderLeave:
			l.leave(now, h)
		case relay.LadderClose:
			l.closeCarrier(h, a.ID)
		}
	}
	l.alarms.set(&h.alarm, h.ladder.Next())
}

// probe asks by UDP whether the server is there: a VISIT to nobody, at every address
// that its name has.
func (l *loop) probe(now instant, h *serverHost, port uint16) {
	if len(h.addrs) == 0 || h.standIn {
		return
	}
	if h.probers[port] == nil {
		h.probers[port] = relay.NewVisitor(relay.VisitorConfig{Server: h.server.Key})
	}
	b, err := h.probers[port].Open(now.wall, nil)
	if err != nil {
		l.log.Error("cannot ask a server", "err", err)
		return
	}
	for _, a := range h.addrs {
		l.datagram(netip.AddrPortFrom(a, port), b)
	}
}

// probed takes the answer to a probe.
func (l *loop) probed(now instant, h *serverHost, e event) bool {
	prober := h.probers[e.path.Remote.Port()]
	if e.path.Socket != 0 || prober == nil || prober.Receive(now.wall, e.body) != nil {
		return false
	}
	again := prober.Advance(now.wall)
	for _, b := range again {
		l.datagramVia(e.path.Socket, e.path.Remote, b)
	}
	if len(again) > 0 {
		return true
	}
	// The first to answer is taken, unless the one in use was only slow.
	if i := slices.Index(h.addrs, e.path.Remote.Addr()); i >= 0 && i != h.using && h.ladder.Climbing() {
		h.answers = i
		if h.socket == 0 && e.path.Remote.Port() == h.port {
			l.log.Info("another address of a server answers", "server", h.server.HostPort(), "address", e.path.Remote.Addr())
			l.use(now, h, relay.LadderAction{Kind: relay.LadderUse, Rung: h.ladder.Rung(), Port: h.port})
		}
	}
	l.heard(now, h, e.path)
	return true
}

// dial opens a carrier beside the loop.
func (l *loop) dial(h *serverHost, a relay.LadderAction) {
	addr, ok := h.addr()
	route := relay.Route{Port: a.Port}
	if a.Rung == relay.RungProxy {
		route.Proxy, _ = relay.ProxyFor(l.proxies.Find, h.server) // asked before without an error
	}
	cfg := l.dialConfig(h.server)
	cfg.Timeout = dialTimeout
	ctx, cancel := context.WithCancel(l.jobs.ctx)
	h.carriers[a.ID] = &carrying{rung: a.Rung, cancel: cancel, remote: addr}
	l.jobs.do(func(context.Context) {
		conn, err := (*relay.Carrier)(nil), errors.New("the name of the server is not resolved")
		if ok {
			conn, err = relay.DialCarrier(ctx, cfg, route, addr)
		}
		if !l.posted(func(now instant) { l.dialled(now, h, a, conn, err) }) && conn != nil {
			conn.Close()
		}
	})
}

// posted is post, and says whether the loop took it.
func (l *loop) posted(f func(now instant)) bool {
	select {
	case l.calls <- f:
		return true
	case <-l.done:
		return false
	}
}

// dialled takes the outcome of dial.
func (l *loop) dialled(now instant, h *serverHost, a relay.LadderAction, conn *relay.Carrier, err error) {
	c := h.carriers[a.ID]
	if c == nil { // closed meanwhile
		if conn != nil {
			l.jobs.do(func(context.Context) { conn.Close() })
		}
		return
	}
	if err == nil {
		c.number, err = l.addSocket(conn)
	}
	if err != nil {
		c.cancel()
		delete(h.carriers, a.ID)
		if a.Port == udpTLS || h.failed[a.Rung] == "" { // proxies refuse other ports as a rule
			h.failed[a.Rung] = err.Error()
		}
		l.log.Debug("no carrier", "server", h.server.HostPort(), "by", a.Rung, "err", err)
		h.ladder.Failed(now.wall, a.ID)
		l.climb(now, h)
		return
	}
	c.conn = conn
	l.publishServers()
	delete(h.failed, a.Rung)
	l.jobs.do(func(context.Context) {
		err := newInbound(l.plane, conn, c.number).run()
		l.posted(func(now instant) { l.carrierEnded(now, h, a.ID, errors.Join(err, conn.Err())) })
	})
	h.ladder.Opened(now.wall, a.ID)
	l.climb(now, h)
}

// carrierEnded takes note that a stream broke.
func (l *loop) carrierEnded(now instant, h *serverHost, id int, err error) {
	c := h.carriers[id]
	if c == nil {
		return
	}
	if !errors.Is(err, net.ErrClosed) {
		h.failed[c.rung] = err.Error()
		l.log.Info("carrier ended", "server", h.server.HostPort(), "by", c.rung, "err", err)
	}
	h.ladder.Failed(now.wall, id)
	l.climb(now, h)
	l.leave(now, h)
	l.closeCarrier(h, id)
}

func (l *loop) closeCarrier(h *serverHost, id int) {
	c := h.carriers[id]
	if c == nil {
		return
	}
	delete(h.carriers, id)
	c.cancel()
	if c.conn != nil {
		l.drops.n[dropOutStream].Add(c.conn.Dropped())
		l.removeSocket(c.number)
		l.jobs.do(func(context.Context) { c.conn.Close() })
	}
}

// use moves everything to another way. What came before still works for a while.
func (l *loop) use(now instant, h *serverHost, a relay.LadderAction) {
	old, _ := h.at()
	h.port, h.socket, h.using = a.Port, 0, h.answers
	if c := h.carriers[a.ID]; c != nil && a.Rung.Stream() {
		h.socket, h.remote, h.warning = c.number, c.remote, c.conn.TLSWarning()
	}
	l.rung.Store(uint32(a.Rung))
	for _, o := range l.hosts {
		o.ladder.Hurry(a.Rung)
	}
	l.log.Info("way to server", "server", h.server.HostPort(), "by", a.Rung)
	at, _ := h.at()
	home := false
	for _, s := range l.servers {
		if s.host == h {
			home = true
			s.seenAs = netip.AddrPort{}
			s.machine.Kick(now.wall)
			s.advance(now)
		}
	}
	l.updateCandidates(now)
	for _, k := range l.links {
		moved := false
		for _, leg := range k.legs {
			if leg.visitor.host == h {
				moved = true
				if k.active != nil {
					leg.visitor.open(now, l, nil)
				}
			}
		}
		for p, heard := range k.seen {
			if home && p.Remote == old.Remote && p.Socket == old.Socket {
				// Channels of our own server follow the home session.
				moved = true
				k.seen[natt.Path{Remote: at.Remote, Socket: at.Socket, Channel: p.Channel}] = heard
			}
		}
		if moved {
			if k.try != nil {
				k.try.next = now.wall // the last INIT went the old way
			}
			k.relays(now)
			k.advance(now)
		}
	}
}

// leave forgets the channels that begin another way than that in use.
func (l *loop) leave(now instant, h *serverHost) {
	for _, k := range l.links {
		left := false
		for _, leg := range k.legs {
			if leg.visitor.host == h {
				leg.visitor.former = natt.Path{}
				left = true
			}
		}
		for p := range k.seen {
			if h.owns(p) && !h.current(p) {
				delete(k.seen, p)
				left = true
			}
		}
		if left {
			k.relays(now)
			k.advance(now)
		}
	}
}

// shut closes all carriers of a server.
func (l *loop) shut(h *serverHost) {
	l.alarms.set(&h.alarm, time.Time{})
	for id := range h.carriers {
		l.closeCarrier(h, id)
	}
}

// carriersDropped counts what open carriers had to drop.
func (l *loop) carriersDropped() (n uint64) {
	for _, h := range l.hosts {
		for _, c := range h.carriers {
			if c.conn != nil {
				n += c.conn.Dropped()
			}
		}
	}
	return n
}

// shutCarriers closes all carriers once their queues are empty, or soon.
func (l *loop) shutCarriers() {
	for _, h := range l.hosts {
		for _, c := range h.carriers {
			c.cancel()
			if c.conn != nil {
				c.conn.Drain(goodbye)
				c.conn.Close()
			}
		}
	}
}

// goodbye is how long a stop waits for last words.
const goodbye = 100 * time.Millisecond

// releaseSpare closes carriers to servers of peers that nobody uses.
func (l *loop) releaseSpare(now instant) {
	homes := map[*serverHost]bool{}
	for _, s := range l.servers {
		homes[s.host] = true
	}
	for _, h := range l.hosts {
		for _, c := range h.carriers {
			if homes[h] || c.number == 0 || c.number != h.socket {
				continue
			}
			last := c.conn.Since()
			if at := c.conn.Heard(); at != 0 {
				last = time.Unix(0, at)
			}
			if now.wall.Sub(last) > spareIdle {
				h.ladder.Release(now.wall)
				l.climb(now, h)
				break
			}
		}
	}
}

var errSockets = errors.New("too many sockets")

// addSocket gives a socket a number and makes it known to the senders. Numbers are
// used again as late as possible, since paths that name them live on for a while.
func (l *loop) addSocket(conn natt.PacketConn) (uint16, error) {
	n := *l.snapshot.Load()
	for range maxSockets {
		l.lastSocket = l.lastSocket%(maxSockets-1) + 1
		i := int(l.lastSocket)
		if i < len(n.sockets) && n.sockets[i] != nil {
			continue
		}
		sockets := make([]natt.PacketConn, max(len(n.sockets), i+1))
		copy(sockets, n.sockets)
		sockets[i] = conn
		n.sockets = sockets
		l.snapshot.Store(&n)
		return l.lastSocket, nil
	}
	return 0, errSockets
}

func (l *loop) removeSocket(number uint16) {
	n := *l.snapshot.Load()
	n.sockets = append([]natt.PacketConn(nil), n.sockets...)
	if int(number) < len(n.sockets) {
		n.sockets[number] = nil
	}
	l.snapshot.Store(&n)
}

// dialConfig is how to open streams to a server, the way first that worked last.
// It may be called beside the loop.
func (l *loop) dialConfig(s crypto.Server) relay.DialConfig {
	proxy, err := relay.ProxyFor(l.proxies.Find, s)
	if err != nil {
		proxy = nil // status says why
	}
	routes := relay.Routes(s, proxy)
	rank := func(r relay.Route) int {
		switch rung := relay.Rung(l.rung.Load()); {
		case rung == relay.RungProxy && r.Proxy != nil, rung == relay.RungTLS && r.Proxy == nil && r.Port == udpTLS:
			return 0
		}
		return 1
	}
	var first, rest []relay.Route
	for _, r := range routes {
		if rank(r) == 0 {
			first = append(first, r)
		} else {
			rest = append(rest, r)
		}
	}
	return relay.DialConfig{
		Server: s, Routes: append(first, rest...), CA: l.proxies.CA,
		DialContext: l.underlay.DialContext, Logger: l.log, Now: l.clock.Now,
	}
}

// unanswered says what was tried to reach a server that is not reached.
func (h *serverHost) unanswered() string {
	text := "no answer over UDP from " + h.server.HostPort()
	if h.standIn {
		text = fmt.Sprintf("cannot resolve %s: %v", h.server.Host, h.err)
	} else if h.server.Port != udpTLS {
		text += " or its port 443"
	}
	for _, r := range []relay.Rung{relay.RungTLS, relay.RungProxy} {
		if why := h.failed[r]; why != "" {
			why = strings.TrimPrefix(strings.TrimPrefix(why, "relay: "), "server "+h.server.HostPort()+": ")
			if r == relay.RungTLS {
				why = "TLS, " + why
			}
			text += "; " + why
		}
	}
	return text
}

// A hush notices that a flow has stopped coming in. Its sender may have ended it,
// or nothing reaches us any more, because our own address changed or UDP is gone:
// so the servers are asked, which learn our address and the ladder whether they
// answer. While we go on sending they are asked again and again for a while: a
// router that changes is not ready at once, and what it let pass in between it
// forgets.
type hush struct{ heard, silent int } // ticks

const (
	hushFlow  = 5  // ticks with packets that make a flow
	hushTicks = 3  // without
	hushAgain = 2  // ticks between two questions
	hushMost  = 30 // ticks without until we stop
)

// fell takes one tick, and reports whether the servers are to be asked.
func (h *hush) fell(received, sent bool) bool {
	if received {
		h.heard, h.silent = h.heard+1, 0
		return false
	}
	h.silent++
	flow := h.heard >= hushFlow
	if h.silent < hushTicks {
		return false
	}
	if !flow || !sent || h.silent > hushMost {
		h.heard = 0
	}
	return flow && (h.silent-hushTicks)%hushAgain == 0
}
