package overlay

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// An attempt is a handshake that we began: INITs until a RESP comes.
type attempt struct {
	init  *crypto.Initiation
	slot  *slotState
	tries int
	sent  time.Duration // when the INIT under way left
	began time.Time
	next  time.Time
}

// Waits between INITs; the last one repeats until giveUp. A peer that is started
// anew, for whatever reason, is back in some seconds: so long it is asked often.
var initWaits = [...]time.Duration{
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, time.Second, time.Second, time.Second, time.Second,
	2 * time.Second, 4 * time.Second, 5 * time.Second,
}

const (
	giveUp       = 90 * time.Second
	nextTries    = 3 // INITs under the next pair state before the current one is tried too
	directTries  = 7 // INITs that also go to the cached direct endpoint
	clockTrusted = time.Hour
)

// connect begins a handshake, unless one is under way.
func (l *link) connect(now instant) {
	if l.try != nil || len(l.slots) == 0 || l.loop.superseded.Load() {
		return
	}
	l.try = &attempt{began: now.wall, next: now.wall}
	l.knockAgain(now)
}

// abandon ends the attempt.
func (l *link) abandon() {
	if l.try != nil && l.try.init != nil {
		l.loop.forget(l.try.init.Index())
	}
	l.try = nil
}

// knockAgain sends the next INIT of the attempt, under a fresh ephemeral key, on
// every way to the peer at once.
func (l *link) knockAgain(now instant) {
	t := l.try
	if now.wall.Sub(t.began) >= giveUp {
		l.abandon()
		l.gone = noAnswer
		l.wanted.Store(false)
		l.stage.take()
		return
	}
	if t.init != nil {
		l.loop.forget(t.init.Index())
	}
	t.slot = l.slots[0]
	if len(l.slots) > 1 && t.tries >= nextTries {
		t.slot = l.slots[(t.tries-nextTries+1)%len(l.slots)]
	}
	when := l.loop.epochTime(now.wall)
	init, err := t.slot.pair.Initiate(when, l.loop.newIndex(), crypto.InitPayload{
		Millis: uint64(when.UnixMilli()), Instance: l.loop.instance, Head: l.loop.heads.count,
	})
	if err != nil {
		l.loop.log.Error("cannot make a handshake", "peer", l.book.Name, "err", err)
		l.abandon()
		return
	}
	t.init = init
	l.loop.await(init.Index(), l)
	t.sent = now.boot
	l.sendInit(now, init.Message(), t.tries)
	if t.tries == 2 && l.gone == "" {
		l.gone = noAnswer
	}
	t.next = now.wall.Add(initWaits[min(t.tries, len(initWaits)-1)])
	t.tries++
}

// sendInit sends one INIT over the path in use, through the peer's home servers
// and to its last known direct endpoint.
func (l *link) sendInit(now instant, msg []byte, tries int) {
	var direct []netip.AddrPort
	if p, ok := l.agent.Best(); ok && l.active != nil {
		if p.Relayed() {
			l.loop.frame(p, msg)
		} else {
			direct = append(direct, p.Remote)
		}
		if tries == 0 {
			// A rekey over a path that works needs no other.
			for _, a := range direct {
				l.loop.datagramVia(p.Socket, a, msg)
			}
			return
		}
	}
	if l.home.IsValid() && tries < directTries && (len(direct) == 0 || direct[0] != l.home) {
		direct = append(direct, l.home)
	}
	for _, leg := range l.legs {
		leg.visitor.open(now, l.loop, msg)
	}
	for p, at := range l.seen {
		// The peer came to us over this channel of our own server not long ago.
		if now.wall.Sub(at) < giveUp {
			l.loop.frame(p, msg)
		}
	}
	for _, a := range direct {
		l.loop.datagram(a, msg)
	}
}

// A visitor is a relay channel through one home server of a peer, with the
// server's addresses as they become known.
type visitor struct {
	*relay.Visitor
	host   *serverHost
	way    natt.Path // by which the channel was opened, with its number
	former natt.Path // the same before that, which still works for a while
}

func (v *visitor) open(now instant, l *loop, inner []byte) {
	if _, ok := v.host.addr(); !ok {
		l.resolve(v.host)
		return
	}
	b, err := v.Open(now.wall, inner)
	if err != nil {
		l.log.Error("cannot open a relay channel", "err", err)
		return
	}
	l.ask(now, v.host, b)
}

// came notes over which way the server answered.
func (v *visitor) came(p natt.Path) {
	p.Channel = v.Channel()
	if p.Channel == 0 || p == v.way {
		return
	}
	// Another channel on the same way means that the old one is gone.
	moved := p.Remote != v.way.Remote || p.Socket != v.way.Socket
	if moved && v.way.Channel != 0 && v.host.current(p) {
		v.former = v.way
	}
	v.way = p
}

// path is the channel as a path, if it is open.
func (v *visitor) path() (natt.Path, bool) { return v.way, v.way.Channel != 0 }

// response takes a RESP to our attempt.
func (l *link) response(now instant, e event) {
	t := l.try
	if t == nil || t.init == nil {
		l.loop.drops.add(dropInRespIndex)
		return
	}
	told, keys, remote, err := t.init.Complete(e.body)
	if err != nil {
		l.loop.drops.add(dropInAuth)
		return
	}
	s := l.newSession(now, crypto.NewSession(keys, t.init.Index(), remote), t.slot, true)
	s.start = told.Start
	s.confirmed.Store(true)
	slot, took := t.slot, now.boot-t.sent
	l.abandon()
	l.connected(now, s, slot, e.path, took)
	if l.active == s {
		// Our first data confirms the session to the peer; without any, a
		// keepalive does.
		l.loop.send.item(l.peer, l.over(e.path), appendItem(nil, itemKeepalive, nil), 0)
		l.loop.send.flush()
	}
}

func (l *link) newSession(now instant, s *crypto.Session, slot *slotState, initiated bool) *liveSession {
	live := &liveSession{sessionEntry: &sessionEntry{
		Session: s, peer: l.peer, slot: slot.id, initiated: initiated, created: now.boot,
	}}
	l.sessions = append(l.sessions, live)
	l.loop.putSession(live.sessionEntry)
	return live
}

// connected does what a confirmed session means: it may be sent on, its path is
// one that works, and a new pair state that it was made under is final. took is
// how long the other side needed for the last message of the handshake.
func (l *link) connected(now instant, s *liveSession, slot *slotState, path natt.Path, took time.Duration) {
	l.gone = ""
	if slot.fresh {
		l.loop.confirmSlot(l.key, slot.id)
	}
	if path.Relayed() {
		l.seen[path] = now.wall
	}
	l.relays(now)
	l.agent.Handshaken(now.wall, path, took)
	if l.active == nil || l.active.start != s.start {
		l.bridge = bridge{path, now.boot + bridgeFor}
	}
	l.choose(now)
	if l.active == s {
		l.abandon()
		l.publish()
		l.greetHead(s.head)
		l.greetTerms()
	}
	l.loop.log.Debug("session", "peer", l.book.Name, "path", describe(path), "initiated", s.initiated)
}

// confirm takes the first DATA of a session that we answered.
func (l *link) confirm(now instant, e event) {
	for _, s := range l.sessions {
		if s.sessionEntry != e.entry {
			continue
		}
		l.last = s.millis
		slot := l.slot(s.slot)
		if slot == nil {
			return // the pair state was replaced meanwhile
		}
		l.connected(now, s, slot, e.path, now.boot-s.created)
		return
	}
}

// relays tells the agent which relay paths lead to the peer now.
func (l *link) relays(now instant) {
	var paths []natt.Path
	for _, leg := range l.legs {
		if p, ok := leg.visitor.path(); ok && !leg.visitor.Stale() {
			paths = append(paths, p)
		}
		if p := leg.visitor.former; p.Channel != 0 {
			paths = append(paths, p)
		}
	}
	for p, at := range l.seen {
		if now.wall.Sub(at) > channelIdle {
			delete(l.seen, p)
			continue
		}
		paths = append(paths, p)
	}
	l.agent.Relays(now.wall, paths)
}

// channelIdle is how long a relay channel that the peer used is taken to exist.
const channelIdle = 4 * time.Minute

// An initGuard stands before the arithmetic of a handshake: every INIT is
// answered once, and a peer gets two answers a second. It remembers those seen
// for longer than their tags live, so that whoever recorded them cannot spend
// the peer's budget with them; half of a MAC is enough to tell them apart, as
// only the peer can make one.
type initGuard struct {
	seen   map[uint64]struct{}
	order  []seenInit // oldest first
	tokens float64
	filled time.Duration
}

type seenInit struct {
	mac uint64
	at  time.Duration
}

const (
	guardKept  = 1024 // more than a day and a night of rekeys
	guardLife  = (2*crypto.EpochWindow + 1) * crypto.EpochLength
	guardRate  = 2.0 // INITs a second
	guardBurst = 8.0
	tentative  = 20 * time.Second
)

// admit decides on an INIT whose MAC is right.
func (g *initGuard) admit(full [16]byte, now time.Duration) dropReason {
	mac := binary.BigEndian.Uint64(full[:])
	if _, ok := g.seen[mac]; ok {
		return dropInInitSeen
	}
	if g.seen == nil {
		g.seen = make(map[uint64]struct{})
		g.tokens = guardBurst
	}
	g.tokens = min(guardBurst, g.tokens+(now-g.filled).Seconds()*guardRate)
	g.filled = now
	if g.tokens < 1 {
		return dropInInitBudget
	}
	g.tokens--
	for len(g.order) > 0 && (len(g.order) == guardKept || now-g.order[0].at > guardLife) {
		delete(g.seen, g.order[0].mac)
		g.order = g.order[1:]
	}
	g.seen[mac] = struct{}{}
	g.order = append(g.order, seenInit{mac, now})
	return carried
}

// initiation answers an INIT of the peer. Nothing of the peer's state changes
// before the session that results is confirmed by data.
func (l *link) initiation(now instant, e event, slot *slotState) dropReason {
	if l.loop.answered.before(crypto.InitMAC(e.body)) {
		return dropInInitSeen
	}
	if r := l.inits.admit(crypto.InitMAC(e.body), now.boot); r != carried {
		return r
	}
	var observed netip.AddrPort
	if !e.path.Relayed() {
		observed = e.path.Remote
	}
	index := l.loop.newIndex()
	msg, in, keys, err := slot.pair.Respond(e.body, index, crypto.RespPayload{Start: crypto.StartOf(l.loop.instance), Observed: observed})
	if err != nil {
		return dropInAuth
	}
	if in.Millis <= l.last {
		// An old time is a wrong clock, a restored backup or a replay: one try
		// in twenty seconds, and only data moves the time back.
		if l.tried != 0 && now.boot-l.tried < tentative {
			return dropInInitBudget
		}
		l.tried = now.boot
	}
	unconfirmed := 0
	for i := len(l.sessions) - 1; i >= 0; i-- {
		if s := l.sessions[i]; !s.confirmed.Load() {
			if unconfirmed++; unconfirmed >= maxUnconfirmed {
				l.remove(s)
			}
		}
	}
	sender, _, _ := crypto.InitHeader(e.body)
	s := l.newSession(now, crypto.NewSession(keys, index, sender), slot, false)
	s.millis, s.head, s.start = in.Millis, in.Head, in.Start()
	l.loop.noteAnswer(e.body)
	if e.path.Relayed() {
		l.loop.frame(e.path, msg)
	} else {
		l.loop.datagramVia(e.path.Socket, e.path.Remote, msg)
	}
	return carried
}

// newIndex draws a receiver index that is free in the session table.
func (l *loop) newIndex() uint32 {
	t := l.snapshot.Load().sessions
	var b [4]byte
	for {
		// crypto/rand never fails (it ends the process instead).
		_, _ = rand.Read(b[:])
		i := binary.BigEndian.Uint32(b[:])
		if _, taken := l.waits[i]; i != 0 && !taken && t.free(i) {
			return i
		}
	}
}
