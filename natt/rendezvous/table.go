package rendezvous

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// A binding is where somebody is reached: a remote address, and the socket and
// local address from which it expects to hear. Immutable.
type binding struct {
	addr  netip.AddrPort
	local netip.Addr
	sock  *socket
}

// source says whether what came from addr on sock came from there.
func (b *binding) source(addr netip.AddrPort, sock *socket) bool {
	return b.addr == addr && b.sock == sock
}

// A former binding is one that a session has moved away from. What was on its way
// when it did is still taken from there for a while.
type former struct {
	binding
	until int64
}

const formerLife = 10 * time.Second

// A session is a home session. Its fields below mu change under mu only.
type session struct {
	number   uint64
	agent    crypto.Fingerprint
	instance uint64
	started  uint64 // unix ms, as far as the agent says
	tr       *crypto.Transport
	bind     atomic.Pointer[binding]
	former   atomic.Pointer[former]
	proven   atomic.Pointer[binding] // where a REVEAL has shown that the agent reads
	used     atomic.Int64            // when it was last heard
	mail     atomic.Bool             // mail waits

	mu         sync.Mutex
	highest    uint64 // counter of the records so far
	confirmed  bool
	superseded bool
	contested  int64    // when another instance that says it is older wanted its place
	notices    [4]uint8 // by code: how often it is still to be sent
}

// newer reports whether s displaces cur, another instance of the same agent.
func (s *session) newer(cur *session) bool {
	if s.started != cur.started {
		return s.started > cur.started
	}
	return s.instance > cur.instance
}

// A channel joins a visitor to a target. It exists whether or not the target
// does, so that a visitor cannot tell.
type channel struct {
	target        crypto.Fingerprint
	visitor       binding
	visitorNumber uint64
	targetNumber  uint64
	answered      atomic.Bool  // the target has sent something
	proven        atomic.Bool  // the visitor has used its number: it reads at its address
	asked         atomic.Bool  // the visitor asks where the target is, and may be known to it
	revealed      atomic.Bool  // the target wants the same
	used          atomic.Int64 // last frame
	toTarget      lane
	toVisitor     lane
	echo          gate // keepalives sent back
}

// A lane is one direction of a channel: what passes before the channel is open,
// and the quota after.
type lane struct{ young, quota gate }

// An end is one side of a channel, found by the number that this side sends with.
type end struct {
	*channel
	isTarget bool
}

type visitKey struct {
	from   netip.AddrPort
	sock   *socket
	target crypto.Fingerprint
}

// A table holds everything that a restart loses.
type table struct {
	mu       sync.RWMutex
	homes    map[crypto.Fingerprint]*session // confirmed, current
	sessions map[uint64]*session             // all: current, unconfirmed, superseded
	ends     map[uint64]end
	visits   map[visitKey]*channel
}

func newTable() *table {
	return &table{
		homes:    make(map[crypto.Fingerprint]*session),
		sessions: make(map[uint64]*session),
		ends:     make(map[uint64]end),
		visits:   make(map[visitKey]*channel),
	}
}

// number returns a random number that is not zero. 64 random bits do not repeat
// among those in use.
func number() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails (crypto/rand)
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

func (t *table) home(fp crypto.Fingerprint) *session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.homes[fp]
}

func (t *table) session(number uint64) *session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sessions[number]
}

// add stores an unconfirmed session; false if there is no room.
func (t *table) add(s *session, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) >= limit {
		return false
	}
	t.sessions[s.number] = s
	return true
}

// promote makes s the current session of its agent and returns the session of
// another instance that it displaced, if any. If in the meantime a newer
// instance was confirmed, s itself is the displaced one.
func (t *table) promote(s *session) (displaced *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cur := t.homes[s.agent]
	switch {
	case cur == nil, cur == s:
	case cur.instance == s.instance:
		delete(t.sessions, cur.number)
		if at := cur.bind.Load(); *at != *s.bind.Load() {
			s.former.Store(&former{*at, s.used.Load() + int64(formerLife)})
		} else {
			s.former.Store(cur.former.Load())
		}
	case s.newer(cur):
		displaced = cur
	default:
		return s
	}
	t.homes[s.agent] = s
	return displaced
}

// remove forgets a session.
func (t *table) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(s)
}

func (t *table) removeLocked(s *session) {
	delete(t.sessions, s.number)
	if t.homes[s.agent] == s {
		delete(t.homes, s.agent)
	}
}

// visit returns the channel from one address to a target, making it if there is
// room, and nil otherwise.
func (t *table) visit(from binding, target crypto.Fingerprint, now int64, limit int) *channel {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := visitKey{from.addr, from.sock, target}
	if c := t.visits[key]; c != nil {
		c.used.Store(now)
		return c
	}
	if len(t.visits) >= limit {
		return nil
	}
	c := &channel{target: target, visitor: from, visitorNumber: number(), targetNumber: number()}
	c.used.Store(now)
	t.visits[key] = c
	t.ends[c.visitorNumber] = end{c, false}
	t.ends[c.targetNumber] = end{c, true}
	return c
}

// sweep drops what has been silent for too long.
func (t *table) sweep(now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		idle := unconfirmedIdle
		if s.isConfirmed() { // also a superseded one, to be told so again
			idle = sessionIdle
		}
		if now-s.used.Load() > int64(idle) {
			t.removeLocked(s)
		}
	}
	for key, c := range t.visits {
		idle := channelIdle
		if !c.answered.Load() {
			idle = unansweredIdle
		}
		if now-c.used.Load() > int64(idle) {
			delete(t.visits, key)
			delete(t.ends, c.visitorNumber)
			delete(t.ends, c.targetNumber)
		}
	}
}

// current returns all current sessions.
func (t *table) current() []*session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*session, 0, len(t.homes))
	for _, s := range t.homes {
		all = append(all, s)
	}
	return all
}

func (t *table) count() (homes, channels int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.homes), len(t.visits)
}

const (
	sessionIdle     = 5 * time.Minute // many keepalives; agents may learn to send fewer
	unconfirmedIdle = 15 * time.Second
	channelIdle     = 5 * time.Minute
	unansweredIdle  = time.Minute
)

// noticeRepeats is how often a NOTICE is sent until a PING answers it.
const noticeRepeats = 3

// due takes the notices that are to be sent now.
func (s *session) due() (codes []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for code := range s.notices {
		if s.notices[code] > 0 {
			s.notices[code]--
			codes = append(codes, uint64(code))
		}
	}
	return codes
}

// at says whether what came from addr on sock came from the session's agent.
func (s *session) at(addr netip.AddrPort, sock *socket, now int64) bool {
	if s.bind.Load().source(addr, sock) {
		return true
	}
	f := s.former.Load()
	return f != nil && now < f.until && f.source(addr, sock)
}

func (s *session) notify(code uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notices[code] = noticeRepeats
}

func (s *session) isConfirmed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confirmed
}

// A standing is what becomes of an instance that wants the place of another.
type standing uint8

const (
	displaces  standing = iota // the place is its own
	waits                      // not known yet: no answer, it will ask again
	superseded                 // the other started later, and lives
)

const contestTime = 3 * time.Second

// contest decides about an instance that says it started before s, which holds
// the place. Clocks may be wrong, for example after a restart of a machine without
// one, so s must show that it lives: it is asked, and loses the place by silence.
func (s *session) contest(now int64) standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := now - s.contested
	switch {
	case s.contested == 0 || since > 10*int64(contestTime):
		s.contested = now
	case s.used.Load() > s.contested:
		return superseded
	case since > int64(contestTime):
		return displaces
	}
	s.notices[relay.NoticeProbe] = 1
	return waits
}

// heard settles what a good record tells besides its content: which notices need
// no repetition, and whether the session has moved. It returns whether this is
// the first record of the session.
func (s *session) heard(r relay.Record, counter uint64, from binding, now int64) (first, moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used.Store(now)
	first = !s.confirmed
	s.confirmed = true
	if r.Kind == relay.Ping {
		s.notices = [4]uint8{relay.NoticeSuperseded: s.notices[relay.NoticeSuperseded]}
	}
	if old := s.bind.Load(); (counter > s.highest || first) && *old != from {
		s.former.Store(&former{*old, now + int64(formerLife)})
		s.bind.Store(&from)
		moved = true
	}
	s.highest = max(s.highest, counter)
	return first, moved
}
