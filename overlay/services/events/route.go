package events

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/overlay/services"
)

// A Refusal says why an event, a subscription or a session is refused, in the
// terms of MQTT and of HTTP.
type Refusal struct {
	Code   byte // reason code of MQTT 5
	Status int  // of HTTP
	Reason string
}

func (r *Refusal) Error() string { return "events: " + r.Reason }

func refusal(code packets.Code, status int, format string, args ...any) *Refusal {
	return &Refusal{Code: code.Code, Status: status, Reason: fmt.Sprintf(format, args...)}
}

// code is the reason in a packet.
func (r *Refusal) code() packets.Code { return packets.Code{Code: r.Code, Reason: r.Reason} }

func asRefusal(err error) *Refusal {
	if r := new(Refusal); errors.As(err, &r) {
		return r
	}
	if e := services.DiskFault(err, "of this agent"); e != nil {
		code := packets.ErrUnspecifiedError
		if e.Code == services.CodeQuota {
			code = packets.ErrQuotaExceeded
		}
		return refusal(code, e.Status, "%s", e.Message)
	}
	return refusal(packets.ErrUnspecifiedError, 500, "the event could not be stored")
}

// mayPublish says why a peer may not publish an event.
func mayPublish(p services.Peer, m *Message) error {
	if err := CheckTopic(m.Topic); err != nil {
		return refusal(packets.ErrTopicNameInvalid, 400, "%s", short(err))
	}
	if m.ReplyTo != "" {
		if err := CheckTopic(m.ReplyTo); err != nil {
			return refusal(packets.ErrTopicNameInvalid, 400, "response %s", short(err))
		}
	}
	if !Writes(p, m.Topic) {
		return refusal(packets.ErrNotAuthorized, 403, "you publish below %s here", ownPrefix(p.Name))
	}
	if len(m.Payload) > MaxPayload {
		return refusal(packets.ErrPacketTooLarge, 413, "an event has at most %d bytes", MaxPayload)
	}
	return nil
}

// short is an error of this package without its name.
func short(err error) string {
	const room = "events: "
	if s := err.Error(); len(s) > len(room) && s[:len(room)] == room {
		return s[len(room):]
	}
	return err.Error()
}

// publish routes an event. answer is called once with the lock held, when the
// event is stored for all subscribers that outlive a connection, or with the
// reason why not. origin is the session of the publisher, if it has one. False:
// the broker ends.
func (b *Broker) publish(ctx context.Context, p services.Peer, origin string, m *Message, answer func(matched int, err error)) bool {
	r := &routing{Broker: b, peer: p, origin: origin, msg: m}
	j := &job{}
	j.plan = func() {
		if r.refused = r.admit(); r.refused == nil {
			r.find()
			j.write = r.write()
		}
	}
	j.done = func(err error) {
		if r.refused == nil {
			r.deliver(err)
		}
		answer(r.matched, errors.Join(err, r.refused, r.full))
	}
	return b.do(ctx, j)
}

// refuse answers in order with the events before it.
func (b *Broker) refuse(ctx context.Context, err error, answer func(int, error)) bool {
	return b.do(ctx, &job{plan: func() {}, done: func(error) { answer(0, err) }})
}

// spread routes an event at QoS 0 that is not retained: nothing of it is stored.
func (b *Broker) spread(p services.Peer, origin string, m *Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &routing{Broker: b, peer: p, origin: origin, msg: m}
	r.find()
	r.deliver(nil)
}

// A routing is the way of one event to its subscribers.
type routing struct {
	*Broker
	peer    services.Peer
	origin  string
	msg     *Message
	st      *stored
	queues  []target
	live    []target
	refused error // nobody gets the event
	full    error // somebody was left out
	matched int
}

type target struct {
	s *session
	e *entry
	d delivery
}

// admit checks the publisher's own quotas.
func (r *routing) admit() error {
	a, n := r.account(r.msg.From), r.msg.size()
	if quota := r.quota(r.peer); r.msg.QoS > 0 && a.stored+n > quota {
		return refusal(packets.ErrQuotaExceeded, 507, "quota: %d of %d bytes of your events wait for subscribers here", a.stored, quota)
	}
	if r.msg.Retain && len(r.msg.Payload) > 0 && !r.peer.Self {
		if old := r.retained[r.msg.Topic]; old != nil && old.From == r.msg.From {
			n -= old.size()
		}
		if a.retained+n > retainedQuota {
			return refusal(packets.ErrQuotaExceeded, 507, "quota: %d of %d bytes of your events are retained here", a.retained, retainedQuota)
		}
	}
	return nil
}

// find finds the subscribers and takes room in their queues. A queue that is full
// does not keep the event from others; the publisher is told.
func (r *routing) find() {
	r.seq++
	r.st = &stored{seq: r.seq, size: r.msg.size(), owner: r.msg.From}
	for id, sub := range r.server.Topics.Subscribers(r.msg.Topic).Subscriptions {
		s := r.sessions[id]
		if s == nil || sub.NoLocal && id == r.origin {
			continue
		}
		p, ok := r.peerOf(s)
		if !ok || !r.access.Reads(p, r.msg.Topic) {
			continue
		}
		d := delivery{msg: r.msg, seq: r.st.seq, retain: r.msg.Retain && sub.RetainAsPublished, subs: identifiers(sub)}
		switch {
		case min(sub.Qos, r.msg.QoS) == 0:
			if s.out != nil {
				r.live = append(r.live, target{s: s, d: d})
				r.matched++
			}
			continue
		case !r.reserve(s, r.st.size, r.quota(p)):
			r.full = refusal(packets.ErrQuotaExceeded, 507, "quota: the event is stored, but not for a subscriber that does not take what it has (%d bytes)", s.bytes)
			continue
		}
		r.queues = append(r.queues, target{s: s, e: &entry{stored: r.st, retain: d.retain, subs: d.subs}})
		r.st.disk = r.st.disk || s.keep
		r.matched++
	}
	if len(r.queues) > 0 {
		r.track(r.st)
		r.st.refs++ // until it is delivered
	}
}

// reserve takes room in a session for an event; free gives it back.
func (b *Broker) reserve(s *session, n, quota int64) bool {
	a := b.account(s.peer)
	if a.waiting+n > quota || !s.keep && s.bytes+n > liveQuota {
		return false
	}
	a.waiting += n
	s.bytes += n
	return true
}

func (b *Broker) free(s *session, n int64) {
	b.account(s.peer).waiting -= n
	s.bytes -= n
}

// write is what must be on the disk before the publisher is told.
func (r *routing) write() func(*bbolt.Tx) error {
	retain, seq := r.msg.Retain, number(r.st.seq)
	if !r.st.disk && !retain {
		return nil
	}
	text := r.msg.append(nil)
	var keys, hows [][]byte
	for _, t := range r.queues {
		if t.s.keep {
			keys, hows = append(keys, queueKey(t.s.number, r.st.seq)), append(hows, t.e.appendHow())
		}
	}
	return func(tx *bbolt.Tx) error {
		if retain {
			if err := putRetained(tx, r.msg, text); err != nil || len(keys) == 0 {
				return err
			}
		}
		messages, queues := tx.Bucket(bucketMessages), tx.Bucket(bucketQueues)
		messages.FillPercent = 0.9 // keys only grow
		if err := messages.Put(seq, text); err != nil {
			return err
		}
		for i, key := range keys {
			if err := queues.Put(key, hows[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// putRetained replaces what is retained under a topic. Without a payload nothing is.
func putRetained(tx *bbolt.Tx, m *Message, text []byte) error {
	if len(m.Payload) == 0 {
		return tx.Bucket(bucketRetained).Delete([]byte(m.Topic))
	}
	return tx.Bucket(bucketRetained).Put([]byte(m.Topic), text)
}

// deliver hands the event over, unless it could not be stored.
func (r *routing) deliver(err error) {
	if err == nil {
		r.deliverLive()
	}
	if len(r.queues) == 0 {
		return
	}
	if err == nil && (!r.st.disk || r.cached+r.st.size <= cacheBytes) {
		r.st.msg = r.msg
		r.cached += r.st.size
	}
	for _, t := range r.queues {
		switch {
		case err != nil:
			r.free(t.s, r.st.size)
		case r.sessions[t.s.id] == t.s:
			r.enqueue(t.s, t.e)
		default: // it ended meanwhile
			r.free(t.s, r.st.size)
			r.trash = append(r.trash, garbage{bucketQueues, queueKey(t.s.number, r.st.seq)})
		}
	}
	r.release(r.st)
}

func (r *routing) deliverLive() {
	if r.msg.Retain {
		r.dropRetained(r.msg.Topic)
		if len(r.msg.Payload) > 0 {
			r.keepRetained(r.msg)
		}
	}
	for _, t := range r.live {
		if r.sessions[t.s.id] == t.s && t.s.out != nil {
			t.s.pushLoose(t.d)
		}
	}
	r.history.add(historic{r.st.seq, r.msg})
}

// keepRetained and dropRetained change what is retained, in memory.
func (b *Broker) keepRetained(m *Message) {
	b.retained[m.Topic] = m
	b.account(m.From).retained += m.size()
}

func (b *Broker) dropRetained(topic string) {
	if old := b.retained[topic]; old != nil {
		b.account(old.From).retained -= old.size()
		delete(b.retained, topic)
	}
}

// retainedFor lists the retained events that a filter selects and a peer may have.
func (b *Broker) retainedFor(p services.Peer, filter string) []*Message {
	now := time.Now().Unix()
	var list []*Message
	add := func(m *Message) {
		if m != nil && !m.expired(now) && Matches(filter, m.Topic) && b.access.Reads(p, m.Topic) {
			list = append(list, m)
		}
	}
	if CheckTopic(filter) == nil {
		add(b.retained[filter])
		return list
	}
	for _, m := range b.retained {
		add(m)
	}
	return list
}

// A history is the latest events, for streams that begin again.
type history struct {
	list  []historic
	bytes int64
}

type historic struct {
	seq uint64
	msg *Message
}

const (
	historyEvents = 4096
	historyBytes  = 8 << 20
)

func (h *history) add(e historic) {
	h.list = append(h.list, e)
	h.bytes += e.msg.size()
	for len(h.list) > historyEvents || h.bytes > historyBytes && len(h.list) > 1 {
		h.bytes -= h.list[0].msg.size()
		h.list[0] = historic{}
		h.list = h.list[1:]
	}
}
