package events

import (
	"bytes"
	"context"
	"encoding/json"
	"sort"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// A session is what a subscriber has here, on a connection or between two.
// Broker.mu guards it.
type session struct {
	id       string // FINGERPRINT/CLIENT; the library's name of it too
	number   uint64 // its name in the store
	peer     crypto.Fingerprint
	self     bool
	version  byte // of MQTT
	keep     bool // it outlives its connection
	recorded bool // it is in the store
	expiry   uint32
	since    time.Time // when the last connection ended
	subs     map[string]packets.Subscription

	queue   []*entry // QoS 1, oldest first
	bytes   int64
	sent    int // entries at the front that were sent on this connection
	flying  map[uint16]*entry
	lastID  uint16
	loose   []delivery // QoS 0, while it is connected
	weight  int64      // bytes in loose
	dropped uint64     // of QoS 0, because the subscriber is slow
	lagged  bool       // a stream lost something and must begin again
	out     *outlet    // nil: not connected
}

// A delivery is an event on its way to one subscriber.
type delivery struct {
	msg    *Message
	seq    uint64
	qos    byte
	id     uint16
	dup    bool
	retain bool
	subs   []int
	entry  *entry
}

// An outlet wakes the goroutine that writes to a connection.
type outlet struct{ wake chan struct{} }

func newOutlet() *outlet { return &outlet{wake: make(chan struct{}, 1)} }

func (o *outlet) ring() {
	if o == nil {
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func newSession(id string, p services.Peer) *session {
	return &session{id: id, peer: p.Fingerprint, self: p.Self, since: time.Now(), subs: map[string]packets.Subscription{}, flying: map[uint16]*entry{}}
}

// addSession gives a session its number.
func (b *Broker) addSession(s *session) {
	if s.number == 0 {
		b.lastSession++
		s.number = b.lastSession
	}
	b.sessions[s.id] = s
	b.account(s.peer).sessions++
}

// enqueue puts an event at the end of a queue, where room was reserved for it.
func (b *Broker) enqueue(s *session, e *entry) {
	e.refs++
	s.queue = append(s.queue, e)
	s.out.ring()
}

// finish takes an entry out of the queue: the subscriber has it, or never will.
func (b *Broker) finish(s *session, e *entry) {
	if e.done {
		return
	}
	e.done = true
	if s.flying[e.id] == e {
		delete(s.flying, e.id)
	}
	b.free(s, e.size)
	if e.disk && s.keep {
		b.trash = append(b.trash, garbage{bucketQueues, queueKey(s.number, e.seq)})
	}
	b.release(e.stored)
	for len(s.queue) > 0 && s.queue[0].done {
		s.queue[0] = nil
		s.queue = s.queue[1:]
		if s.sent > 0 {
			s.sent--
		}
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

// removeSession ends a session and all that waits for it.
func (b *Broker) removeSession(s *session) {
	if b.sessions[s.id] != s {
		return
	}
	b.empty(s)
	delete(b.sessions, s.id)
	b.account(s.peer).sessions--
	for filter := range s.subs {
		b.server.Topics.Unsubscribe(filter, s.id)
	}
	if cl, ok := b.server.Clients.Get(s.id); ok && s.out == nil {
		cl.Stop(nil)
		b.server.Clients.Delete(s.id)
	}
	if s.recorded {
		b.trash = append(b.trash, garbage{bucketSessions, number(s.number)})
	}
	s.out.ring()
}

func (b *Broker) empty(s *session) {
	for _, e := range append([]*entry{}, s.queue...) {
		b.finish(s, e)
	}
	s.loose, s.weight, s.sent = nil, 0, 0
}

// record is the write that makes a session durable.
func (b *Broker) record(s *session) func(*bbolt.Tx) error {
	s.recorded = true
	r := sessionRecord{ID: s.id, Peer: s.peer.String(), Self: s.self, Version: s.version, Expiry: s.expiry, Subs: []packets.Subscription{}}
	if s.out == nil {
		r.Since = s.since.Unix()
	}
	for _, sub := range s.subs {
		r.Subs = append(r.Subs, sub)
	}
	key := number(s.number)
	return func(tx *bbolt.Tx) error {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketSessions).Put(key, text)
	}
}

// keepRecord stores a session that outlives its connection; others need no store.
func (b *Broker) keepRecord(ctx context.Context, s *session) error {
	return b.wait(ctx, func(j *job) {
		if s.keep && b.sessions[s.id] == s {
			j.write = b.record(s)
		}
	})
}

// client is what the peer calls the session.
func (s *session) client() string {
	_, name, _ := strings.Cut(s.id, "/")
	return name
}

// pushLoose gives an event at QoS 0 to a connection, unless too many wait there.
func (s *session) pushLoose(d delivery) {
	n := d.msg.size()
	if len(s.loose) >= looseEvents || s.weight+n > looseBytes && len(s.loose) > 0 {
		s.dropped++
		s.lagged = true
		s.out.ring()
		return
	}
	s.loose = append(s.loose, d)
	s.weight += n
	s.out.ring()
}

// What one write to a connection takes.
const (
	takeEvents = 128
	takeBytes  = 256 << 10
)

// take returns what may be sent now. window is how many events at QoS 1 the
// subscriber accepts before it has acknowledged one.
func (b *Broker) take(s *session, o *outlet, window int) []delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.out != o {
		return nil
	}
	var list []delivery
	var weight int64
	for len(s.loose) > 0 && len(list) < takeEvents && weight < takeBytes {
		d := s.loose[0]
		s.loose[0] = delivery{}
		s.loose = s.loose[1:]
		s.weight -= d.msg.size()
		weight += d.msg.size()
		list = append(list, d)
	}
	if len(s.loose) == 0 {
		s.loose = nil
	}
	for s.sent < len(s.queue) && len(s.flying) < window && len(list) < 2*takeEvents && weight < takeBytes {
		e := s.queue[s.sent]
		s.sent++
		if e.done {
			continue
		}
		d := delivery{msg: e.msg, seq: e.seq, qos: 1, dup: e.sent, retain: e.retain, subs: e.subs, entry: e}
		if e.id == 0 {
			e.id = s.nextID()
		}
		d.id, e.sent = e.id, true
		s.flying[e.id] = e
		weight += e.size
		list = append(list, d)
	}
	return list
}

// nextID is a packet identifier that no event has which was sent and not
// acknowledged, on this connection or the one before.
func (s *session) nextID() uint16 {
	for {
		s.lastID++
		if _, used := s.flying[s.lastID]; s.lastID != 0 && !used && !s.reserved(s.lastID) {
			return s.lastID
		}
	}
}

// reserved says whether an entry that is to be sent again has that identifier.
// Those lie at the front of the queue, at most maxWindow of them.
func (s *session) reserved(id uint16) bool {
	for _, e := range s.queue[s.sent:] {
		if !e.sent {
			return false
		}
		if e.id == id && !e.done {
			return true
		}
	}
	return false
}

// rewind makes a new connection begin with what the old one did not acknowledge.
func (s *session) rewind() {
	s.sent = 0
	clear(s.flying)
	s.loose, s.weight, s.lagged = nil, 0, false
}

// acknowledged is a PUBACK of the subscriber.
func (b *Broker) acknowledged(s *session, id uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := s.flying[id]; e != nil {
		b.finish(s, e)
		s.out.ring()
	}
}

// encode writes deliveries as packets. Those that the subscriber cannot get (too
// large for it, expired, or not readable any more) count as delivered.
func (b *Broker) encode(s *session, list []delivery, version byte, most uint32, now int64) []byte {
	var buf bytes.Buffer
	var gone []*entry
	for _, d := range list {
		m := d.msg
		if m == nil {
			var err error
			if m, err = b.fetch(d.seq); err != nil {
				b.Logger.Error("a stored event cannot be read", "session", s.id, "err", err)
				gone = append(gone, d.entry)
				continue
			}
		}
		begin := buf.Len()
		pk := m.packet(version, now)
		pk.FixedHeader.Qos, pk.FixedHeader.Dup, pk.FixedHeader.Retain, pk.PacketID = d.qos, d.dup, d.retain, d.id
		pk.Properties.SubscriptionIdentifier = d.subs
		if m.expired(now) || pk.PublishEncode(&buf) != nil || most > 0 && buf.Len()-begin > int(most) {
			buf.Truncate(begin)
			if d.entry != nil {
				gone = append(gone, d.entry)
			}
		}
	}
	if len(gone) > 0 {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, e := range gone {
			b.finish(s, e)
		}
		s.out.ring()
	}
	return buf.Bytes()
}

// identifiers are those of the subscriptions that selected an event.
func identifiers(sub packets.Subscription) []int {
	var list []int
	for _, id := range sub.Identifiers {
		if id > 0 {
			list = append(list, id)
		}
	}
	sort.Ints(list)
	return list
}

// sendRetained queues the retained events that a new subscription selects.
func (b *Broker) sendRetained(ctx context.Context, s *session, p services.Peer, sub packets.Subscription) {
	var list []*entry
	var ids []int
	if sub.Identifier > 0 {
		ids = []int{sub.Identifier}
	}
	j := &job{}
	j.plan = func() {
		for _, m := range b.retainedFor(p, sub.Filter) {
			b.seq++
			d := delivery{msg: m, seq: b.seq, retain: true, subs: ids}
			n := m.size()
			if min(sub.Qos, m.QoS) == 0 || !b.reserve(s, n, b.quota(p)) {
				s.pushLoose(d)
				continue
			}
			st := &stored{seq: b.seq, size: n, owner: m.From, disk: s.keep, msg: m}
			b.cached += n
			b.track(st)
			list = append(list, &entry{stored: st, retain: true, subs: ids})
		}
		if s.keep && len(list) > 0 {
			j.write = putEntries(s, list)
		}
	}
	done := make(chan struct{})
	j.done = func(error) { // what cannot be stored can still be sent
		defer close(done)
		for _, e := range list {
			b.enqueue(s, e)
			if b.sessions[s.id] != s {
				b.finish(s, e)
			}
		}
	}
	if b.do(ctx, j) {
		select {
		case <-done:
		case <-b.ended:
		}
	}
}

// storeQueue stores what waits for a session that begins to outlive its
// connections.
func (b *Broker) storeQueue(ctx context.Context, s *session) error {
	return b.wait(ctx, func(j *job) {
		list := append([]*entry{}, s.queue...)
		for _, e := range list {
			e.disk = true
		}
		j.write = putEntries(s, list)
	})
}

// putEntries is the write that stores entries with their events.
func putEntries(s *session, list []*entry) func(*bbolt.Tx) error {
	type record struct{ seq, event, key, how []byte }
	var records []record
	for _, e := range list {
		if !e.done && e.msg != nil {
			records = append(records, record{number(e.seq), e.msg.append(nil), queueKey(s.number, e.seq), e.appendHow()})
		}
	}
	return func(tx *bbolt.Tx) error {
		messages, queues := tx.Bucket(bucketMessages), tx.Bucket(bucketQueues)
		for _, r := range records {
			if err := messages.Put(r.seq, r.event); err != nil {
				return err
			}
			if err := queues.Put(r.key, r.how); err != nil {
				return err
			}
		}
		return nil
	}
}
