package overlay

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/trust"
)

// A link is the control loop's view of one trusted agent: its pair states, its
// sessions, and how it is reached. Only the loop touches it.
type link struct {
	*peer
	loop *loop
	book trust.Peer

	slots    []*slotState // next first, then current
	sessions []*liveSession
	active   *liveSession
	try      *attempt
	inits    initGuard
	last     uint64        // newest INIT time that led to a confirmed session, unix ms
	tried    time.Duration // when the last tentative handshake was answered

	heads  linkHeads
	agent  *natt.Agent
	use    natt.Action // the agent's last ActUse
	bridge bridge
	pool   *pool // nil: none
	legs   []*leg
	seen   map[natt.Path]time.Time // relay paths that the peer used towards us
	home   netip.AddrPort          // cached direct endpoint

	alarm   alarm
	rx, tx  uint64        // counters at the last tick
	acked   time.Duration // when we last sent for the sake of being heard
	busy    time.Duration // when user data last flowed
	heard   bool          // the peer sent last
	unsure  time.Duration // since when the path in use does not answer; 0: it does, or data comes
	doubted time.Duration // when the relays were last asked
	hush    hush
	said    time.Duration // when the peer was last told its terms again
	gone    string        // why the peer is believed away, for status
}

// A slotState is one pair state made ready for handshakes.
type slotState struct {
	id    [32]byte
	pair  *crypto.Pair
	knock *knock
	fresh bool // the peer has not shown yet that it holds it
}

// A liveSession is a session with what the loop must know about it.
type liveSession struct {
	*sessionEntry
	millis uint64        // time in the INIT that made it, if the peer's
	head   uint64        // the peer's count of changes in that INIT
	start  uint16        // which start of the peer made it, as told in INIT or RESP; 0: it did not say
	retire time.Duration // 0: not replaced yet
}

// endsWith reports whether s is over when the peer has closed o: it is older, or both
// sides began one of the two at once, with the same instance of the peer. One that the
// peer has not confirmed, or that another start of it made, may be of a peer that is back
// before its farewell has arrived.
func (s *liveSession) endsWith(o *liveSession) bool {
	switch {
	case s.created <= o.created:
		return true
	case s.start != 0 && o.start != 0:
		return s.start == o.start
	}
	return s.confirmed.Load() && s.created < o.created+tieWindow
}

// A leg is the way through one home server of the peer.
type leg struct {
	server  crypto.Server
	visitor visitor
}

// Limits of a link.
const (
	maxUnconfirmed = 4
	retireAfter    = 10 * time.Second
	// Two sessions this close, with one start of the peer, were begun by both sides at
	// once. Others are of a peer that has lost the one before: it was started anew.
	tieWindow = time.Second
	tickEvery = 100 * time.Millisecond
	ackAfter  = 200 * time.Millisecond
	// A peer that was started anew is silent on every path, and to give the last of
	// them up takes seconds.
	restartedAfter  = 500 * time.Millisecond
	sleepAfter      = 5 * time.Second
	responderRekeys = crypto.RekeyAfterTime + 20*time.Second // if the initiator has not
	legsUsed        = 2
	doubtAgain      = 150 * time.Millisecond
)

// setSlots brings the pair states and their knock tags in line with the book.
func (l *link) setSlots(book trust.Peer) error {
	old := l.slots
	l.book, l.slots = book, nil
	for _, s := range []*trust.Slot{book.Next, book.Current} {
		if s == nil {
			continue
		}
		kept := false
		for _, o := range old {
			if o.id == s.ID {
				o.fresh = !s.Proven
				l.slots, kept = append(l.slots, o), true
			}
		}
		if kept {
			continue
		}
		pair, err := crypto.NewPair(crypto.PairConfig{
			Local: l.loop.id.Key.Public(), Remote: l.key,
			LocalAddr: l.loop.id.Addr().Bytes(), RemoteAddr: book.Addr,
			Static: s.Static, RemoteStatic: s.RemoteStatic, Secret: s.Secret,
		})
		if err != nil {
			return err
		}
		k := &knock{peer: l.key, slot: s.ID, pair: pair}
		l.slots = append(l.slots, &slotState{id: s.ID, pair: pair, knock: k, fresh: !s.Proven})
		l.loop.tags.add(k)
	}
	for _, o := range old {
		if l.slot(o.id) == nil {
			l.loop.tags.remove(o.knock)
		}
	}
	return nil
}

func (l *link) slot(id [32]byte) *slotState {
	for _, s := range l.slots {
		if s.id == id {
			return s
		}
	}
	return nil
}

// publish makes the packet path send where the agent and the sessions say.
func (l *link) publish() {
	if l.active == nil {
		l.peer.tx.Store(nil)
		return
	}
	t := &transmit{session: l.active.Session, path: l.use.Path, also: l.use.Also, budget: l.use.Budget}
	if t.budget == 0 { // the agent has not spoken yet
		p, ok := l.agent.Best()
		if !ok {
			l.peer.tx.Store(nil)
			return
		}
		t.path, t.budget = p, frameBase
	}
	if l.bridge.until != 0 && !t.double() && t.path != l.bridge.path {
		t.also = l.bridge.path
	}
	if t.room = room(t.path, t.budget); t.double() {
		t.room = min(t.room, room(t.also, frameBase))
	}
	l.release(t) // what waited goes before what comes
	l.peer.tx.Store(t)
	l.peer.wanted.Store(false)
	l.release(t)
}

// A bridge is the path of the handshake that ended a silence, or showed that the peer was
// started anew. What the agent knew before may not hold any more, so for a moment
// everything goes over this path too.
type bridge struct {
	path  natt.Path
	until time.Duration // 0: none
}

const bridgeFor = time.Second

// release sends what waited for the session.
func (l *link) release(t *transmit) {
	staged := l.stage.take()
	if len(staged) == 0 {
		return
	}
	var bytes int
	for _, p := range staged {
		bytes += len(p)
		l.loop.send.packet(l.peer, t, p, false)
	}
	l.loop.send.flush()
	l.txBytes.Add(uint64(bytes))
	l.txPackets.Add(uint64(len(staged)))
}

// over is a transmit for a control item on a path of the loop's choice.
func (l *link) over(p natt.Path) *transmit {
	return &transmit{session: l.active.Session, path: p, budget: frameBase, room: room(p, frameBase)}
}

// item sends a control item the way data goes.
func (l *link) item(k itemKind, body []byte) {
	if t := l.peer.tx.Load(); t != nil {
		l.loop.send.item(l.peer, t, appendItem(nil, k, body), 0)
		l.loop.send.flush()
	}
}

// choose picks the session to send on: the newest confirmed one; of two that
// both sides began at once, that of the lower key, so that both pick the same.
func (l *link) choose(now instant) {
	var best *liveSession
	for _, s := range l.sessions {
		if s.confirmed.Load() && (best == nil || l.better(s, best)) {
			best = s
		}
	}
	if best == l.active {
		return
	}
	l.active = best
	for _, s := range l.sessions {
		if best != nil && s != best && s.confirmed.Load() && s.retire == 0 {
			s.retire = now.boot + retireAfter
		}
	}
	if best != nil {
		best.retire = 0
	}
}

func (l *link) better(s, than *liveSession) bool {
	d := s.created - than.created
	if d > -tieWindow && d < tieWindow && s.initiated != than.initiated && (s.start == than.start || s.start == 0 || than.start == 0) {
		return s.initiated == l.lower()
	}
	return s.created > than.created
}

// lower reports whether our key is the lower of the two.
func (l *link) lower() bool { return l.loop.id.Key.Public().Compare(l.key) < 0 }

// remove ends one session at once.
func (l *link) remove(s *liveSession) {
	l.loop.snapshot.Load().sessions.remove(s.sessionEntry)
	l.loop.live--
	for i, o := range l.sessions {
		if o == s {
			l.sessions = append(l.sessions[:i], l.sessions[i+1:]...)
			break
		}
	}
	if l.active == s {
		l.active = nil
	}
	s.Wipe()
}

// disconnect ends all sessions. The peer's pair states stay.
func (l *link) disconnect() {
	l.peer.tx.Store(nil)
	l.closePool(l.loop.now())
	for len(l.sessions) > 0 {
		l.remove(l.sessions[len(l.sessions)-1])
	}
	l.abandon()
}

// sweep removes sessions that were replaced or are too old.
func (l *link) sweep(now instant) {
	for i := len(l.sessions) - 1; i >= 0; i-- {
		s := l.sessions[i]
		age := now.boot - s.created
		if age >= crypto.RejectAfterTime || s.retire != 0 && now.boot >= s.retire ||
			!s.confirmed.Load() && age >= retireAfter && !s.initiated {
			was := s == l.active
			l.remove(s)
			if was {
				l.choose(now)
				l.publish()
			}
		}
	}
}

// tick looks at the traffic of an awake peer: it tells the agent, sends a sign
// of life where only the other side talks, renews the keys, and goes to sleep.
func (l *link) tick(now instant) {
	rx, tx := l.rxPackets.Load(), l.txPackets.Load()
	received, sent := rx != l.rx, tx != l.tx
	l.rx, l.tx = rx, tx
	if received {
		l.unsure = 0
	} else if l.unsure != 0 && now.boot-l.unsure >= restartedAfter {
		l.unsure = 0
		l.connect(now)
	}
	if l.hush.fell(received, sent) {
		l.doubt(now)
	}
	if received || sent {
		l.busy, l.heard = now.boot, received
		l.agent.Active(now.wall, sent, received)
		if l.active != nil && l.stale(now) {
			l.connect(now)
		}
	}
	if l.heard && now.boot-l.busy >= ackAfter {
		// What flowed towards us has stopped. Either it is over, or we are not
		// where the peer sends any more and have nothing to say that would
		// show it: as if we had sent, so that the agent asks once.
		l.heard = false
		l.agent.Active(now.wall, true, false)
	}
	if sent {
		l.acked = now.boot
	} else if received && now.boot-l.acked >= ackAfter {
		l.acked = now.boot
		l.item(itemKeepalive, nil)
	}
	if now.boot-l.busy > sleepAfter {
		l.awake.Store(false)
		if l.rxPackets.Load() != l.rx || l.txPackets.Load() != l.tx {
			l.loop.wake(l.peer) // traffic came in between
		}
	}
}

// stale says that the active session wants new keys.
func (l *link) stale(now instant) bool {
	age, limit := now.boot-l.active.created, responderRekeys
	if l.active.initiated {
		// Up to ten seconds early, spread over sessions by their random index.
		limit = crypto.RekeyAfterTime - time.Duration(l.active.Local()%10000)*time.Millisecond
	}
	return age >= limit || l.active.Sent() >= crypto.RekeyAfterMessages
}

// advance does what is due for the link and returns when it is to be called
// again.
func (l *link) advance(now instant) {
	l.sweep(now)
	if l.bridge.until != 0 && now.boot >= l.bridge.until {
		l.bridge = bridge{}
		l.publish()
	}
	if l.try != nil && !now.wall.Before(l.try.next) {
		l.knockAgain(now)
	}
	if l.awake.Load() {
		l.tick(now)
	}
	for _, a := range l.agent.Advance(now.wall) {
		l.act(now, &a)
	}
	l.loop.alarms.set(&l.alarm, l.nextDeadline(now))
}

func (l *link) nextDeadline(now instant) time.Time {
	next := l.agent.Next()
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if l.try != nil {
		earlier(l.try.next)
	}
	if l.awake.Load() {
		earlier(now.wall.Add(tickEvery))
	}
	if l.bridge.until != 0 {
		earlier(now.wall.Add(max(l.bridge.until-now.boot, time.Millisecond)))
	}
	for _, s := range l.sessions {
		at := s.created + crypto.RejectAfterTime
		if s.retire != 0 {
			at = min(at, s.retire)
		} else if !s.confirmed.Load() && !s.initiated {
			at = min(at, s.created+retireAfter)
		}
		earlier(now.wall.Add(max(at-now.boot, time.Millisecond)))
	}
	return next
}

// act carries out what the path machine asks for.
func (l *link) act(now instant, a *natt.Action) {
	if a.Kind == natt.ActPoolEnd {
		l.prunePool(now)
	}
	if l.active == nil {
		return
	}
	send := l.loop.send
	switch a.Kind {
	case natt.ActChallenge:
		send.item(l.peer, l.over(a.Path), appendChallenge(nil, itemChallenge, a.Token, a.Size), a.Size)
		send.flush()
	case natt.ActProbe:
		send.item(l.peer, l.over(a.Path), appendChallenge(nil, itemChallenge, a.Token, 0), 0)
		send.flush()
	case natt.ActPool:
		l.openPool(now, a)
	case natt.ActAim:
		l.aim(a)
	case natt.ActAttest:
		l.whereabouts(a.Path)
	case natt.ActResponse:
		send.item(l.peer, l.over(a.Path), appendChallenge(nil, itemResponse, a.Token, a.Size), 0)
		send.flush()
	case natt.ActCandidates:
		l.item(itemCandidates, natt.AppendOffer(nil, natt.Offer{Candidates: a.Candidates, Traits: a.Traits, Pool: a.Pool}))
	case natt.ActPunch:
		l.loop.open(a.Path, a.TTL)
	case natt.ActUse:
		switch same := l.use.Path == a.Path; {
		case same && a.Also.Relayed():
			l.unsure = now.boot
		case same:
			l.unsure = 0
		}
		l.use = *a
		l.publish()
		l.remember(a.Path)
		if a.Also.Relayed() {
			l.doubt(now)
		}
	case natt.ActLost:
		l.gone = noAnswer
		l.doubt(now)
		l.connect(now)
	}
}

// doubt makes sure that the relays know where we are now: if the way to the
// peer died because our own address changed, they are bound to the old one.
func (l *link) doubt(now instant) {
	if l.doubted != 0 && now.boot-l.doubted < doubtAgain {
		return
	}
	l.doubted = now.boot
	for _, h := range l.loop.servers {
		h.machine.Probe(now.wall)
		h.advance(now)
	}
	for _, leg := range l.legs {
		if leg.visitor.Channel() != 0 {
			leg.visitor.open(now, l.loop, nil)
		}
	}
}

// noAnswer is what silence means: the three cannot be told apart from here.
const noAnswer = "no answer: offline, revoked us, or lost its state"

// received takes a control item that came authenticated in a session.
func (l *link) received(now instant, e event) {
	l.gone = ""
	switch e.item {
	case itemChallenge:
		if t, size, ok := parseChallenge(e.body); ok {
			l.agent.Challenged(now.wall, e.path, t, size)
		}
	case itemResponse:
		if t, _, ok := parseChallenge(e.body); ok {
			l.agent.Responded(now.wall, e.path, t)
		}
	case itemCandidates:
		if o, err := natt.ParseOffer(e.body); err == nil {
			l.agent.SetOffer(now.wall, o)
		}
	case itemClose:
		l.closed(now, e)
	case itemPing:
		if len(e.body) == pingBody && l.active != nil {
			l.loop.send.item(l.peer, l.over(e.path), appendItem(nil, itemPong, e.body), 0)
			l.loop.send.flush()
			l.rxPackets.Add(1) // as the sender counts it
			l.loop.wake(l.peer)
		}
	case itemPong:
		l.loop.pong(now, e)
	case itemHead:
		l.shownHead(now, e.body)
	case itemTerms:
		l.heldTerms(now, e.body)
	}
}

// closed takes the peer's word that it will not answer any more, on this session and on
// those before it. A later one may be with another instance of the peer, which goes on.
func (l *link) closed(now instant, e event) {
	// None: it went since the item was read.
	if i := slices.IndexFunc(l.sessions, func(s *liveSession) bool { return s.sessionEntry == e.entry }); i >= 0 {
		over := l.sessions[i]
		for _, s := range slices.Clone(l.sessions) {
			if s.endsWith(over) {
				l.remove(s)
			}
		}
	}
	l.choose(now)
	l.publish()
	if l.active != nil {
		return
	}
	l.closePool(now)
	l.abandon()
	switch {
	case len(e.body) == 1 && e.body[0] == closeRevoked:
		l.gone = "the peer withdrew its trust"
	case len(e.body) == 1 && e.body[0] == closeReplaced:
		l.gone = "the peer runs on another machine now"
	default:
		l.gone = "the peer went down"
	}
}
