package trust

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
)

// Receive opens mail, verifies it and applies it. The outcome is on disk when
// it returns, so that the mail may be acknowledged; mail that is wrong gives an
// event Refused. An error means that nothing was decided: do not acknowledge.
// Look into the outbox afterwards, an answer may wait there.
func (s *Store) Receive(sealed []byte) (Event, error) {
	st, err := s.unseal(sealed)
	if err != nil {
		return Event{Kind: Refused, Err: err}, nil
	}
	m := message{Statement: st, id: st.ID()}
	if err := s.vet(&m); err != nil {
		return Event{Kind: Refused, Peer: st.Issuer, Err: err}, nil
	}
	d := s.begin()
	defer d.end()
	r := d.relation(st.Issuer)
	var ev Event
	switch {
	case r.Blocked:
		ev.Err = ErrBlocked
	case st.Serial <= r.Cut && st.Kind != KindRevoke:
		ev.Err = ErrRevoked
	case st.Kind == KindRequest:
		ev, err = d.receiveRequest(r, &m)
	case st.Kind == KindRevoke:
		ev = d.receiveRevoke(r, &m)
	case st.Terms():
		ev = d.receiveTerms(r, &m)
	default:
		ev, err = d.receiveGrant(r, &m)
	}
	if err != nil {
		return Event{}, err
	}
	if ev.Peer = st.Issuer; ev.Name == "" {
		ev.Name = r.Name
	}
	if ev.Kind == 0 {
		ev.Kind = Refused
		ev.Err = fmt.Errorf("trust: %s of %s: %w", st.Kind, st.Issuer, ev.Err)
	}
	if ev.Kind == Refused || ev.Kind == Duplicate && len(d.add) == 0 {
		return ev, nil
	}
	if err := d.commit(); err != nil {
		return Event{}, err
	}
	return ev, nil
}

// A message is a statement with what was found out about its issuer.
type message struct {
	Statement
	id   raw32
	card *cardRecord
	addr [6]byte
}

func (s *Store) unseal(sealed []byte) (Statement, error) {
	if len(sealed) > MaxSealed {
		return Statement{}, fmt.Errorf("trust: mail of %d bytes", len(sealed))
	}
	for _, key := range s.cfg.Seal {
		signed, err := s.sealer.open(key, sealed)
		if err != nil {
			continue
		}
		st, err := ParseStatement(signed)
		switch {
		case err != nil:
			return Statement{}, err
		case st.Subject != s.key:
			return Statement{}, fmt.Errorf("trust: %s of %s is meant for %s", st.Kind, st.Issuer, st.Subject)
		}
		return st, nil
	}
	return Statement{}, errors.New("trust: mail is not sealed to us, or damaged")
}

// vet checks the card in a statement. The node ID costs milliseconds and
// megabytes, so it is computed only for a statement that can still matter, and
// only if the counter is new. It runs without the writer lock.
func (s *Store) vet(m *message) error {
	if len(m.Card) == 0 {
		return nil
	}
	s.mu.RLock()
	r := s.book[m.Issuer]
	s.mu.RUnlock()
	if r != nil && (r.Blocked || m.Serial <= r.Cut || r.processed(m.id)) {
		return nil
	}
	if m.Kind == KindGrant && (r == nil || r.request(m.Parent) == nil) {
		return nil
	}
	card, err := crypto.ParseCard(m.Card)
	if err != nil {
		return fmt.Errorf("trust: %s of %s: %w", m.Kind, m.Issuer, err)
	}
	if card.Key != m.Issuer {
		return fmt.Errorf("trust: %s of %s brings the card of another", m.Kind, m.Issuer)
	}
	if r != nil && r.Card != nil && r.Card.Counter == card.Counter {
		m.addr = r.Addr
	} else if m.addr, err = s.cfg.CheckCard(card); err != nil {
		return fmt.Errorf("trust: %s of %s: address: %w", m.Kind, m.Issuer, err)
	}
	m.card = newCardRecord(card)
	return nil
}

// request finds a request of ours by its ID.
func (r *relation) request(id raw32) *outgoing {
	for _, o := range r.Out {
		if o.ID == id {
			return o
		}
	}
	return nil
}

func (d *draft) receiveRequest(r *relation, m *message) (Event, error) {
	s := d.s
	switch {
	case r.processed(m.id):
		return Event{Kind: Duplicate}, d.answerAgain(m.Issuer, r, m.id)
	case passed(expiryUnix(m.Statement), s.now(), Grace):
		return Event{Err: ErrExpired}, nil
	case m.card == nil:
		return Event{Err: ErrUnexpected}, nil
	case r.Card != nil && r.Addr != m.addr:
		return Event{Err: errors.New("the address differs from the one on record")}, nil
	}
	if err := s.checkAddress(m.addr, m.Issuer); err != nil {
		return Event{Err: err}, nil
	}
	in := &incoming{
		ID: m.id, Random: m.Random, Tunnel: raw32(m.Tunnel), Parent: m.Parent, Serial: m.Serial, Expires: expiryUnix(m.Statement),
		Ask: m.Ask, Offer: m.Offer, Name: CleanText(m.Name, maxName), Reason: CleanText(m.Reason, maxReason),
		Received: s.now().UnixMilli(), Stale: m.Serial <= r.High,
	}
	if in.Stale && r.In != nil && !r.In.Stale {
		return Event{Kind: Duplicate}, nil // overtaken by a newer request
	}
	r.remember(m.id, m.Serial)
	r.Addr, r.Touched, r.In = m.addr, in.Received, in
	if r.Card == nil || r.Card.Serial < m.card.Serial {
		r.Card = m.card
	}
	d.limitStrangers(m.Issuer)
	before := r.clone()
	ev, err := d.decide(m.Issuer, r, in, m.Invite)
	if err != nil { // cannot be granted by itself: it waits, and the event says why
		*r = *before
		clear(d.add)
		clear(d.answer)
		d.drop = nil
		return Event{Kind: RequestPending, Name: in.Name, Err: err}, nil
	}
	return ev, nil
}

func expiryUnix(st Statement) int64 { return int64(expiryToWire(st.Expires)) }

// answerAgain posts the stored grant for a request that comes again. Nothing
// new is made.
func (d *draft) answerAgain(key crypto.PublicKey, r *relation, id raw32) error {
	if r.Pair == nil || r.Pair.Answer != id || d.s.granting() != nil {
		return nil
	}
	var signed []byte
	err := guard(func() error {
		return d.s.db.View(func(tx *bbolt.Tx) error {
			value := tx.Bucket(bucketAnswers).Get(key[:])
			if value == nil {
				return nil
			}
			content, err := openValue(bucketAnswers, key[:], value)
			signed = bytes.Clone(content)
			return err
		})
	})
	if err != nil || signed == nil {
		return err
	}
	st, err := ParseStatement(signed)
	if err != nil {
		return err
	}
	rests := uint64(0)
	for _, slot := range []*slotRecord{r.Pair.Current, r.Pair.Next} {
		if slot != nil && slot.Grant == st.Serial {
			rests = slot.Request
		}
	}
	if rests == 0 {
		return nil // the slot is gone: a newer one took its place
	}
	return d.mailAgain(key, r, mailGrant, signed, st.Serial, rests)
}

// decide grants a new request at once where the rules allow it; otherwise it waits.
func (d *draft) decide(key crypto.PublicKey, r *relation, in *incoming, invite []byte) (Event, error) {
	s := d.s
	if err := s.granting(); err != nil {
		return Event{}, err
	}
	if len(invite) > 0 {
		return d.useInvite(key, r, in, invite)
	}
	waits := Event{Kind: RequestPending, Name: in.Name}
	now := s.now()
	if in.Stale || r.stateLost(in) || passed(in.Expires, now, 0) {
		return waits, nil
	}
	if asked := r.asked(); asked != nil && s.key.Compare(key) > 0 && in.Ask.Within(asked.Offer) {
		kind := Granted
		if r.Pair != nil {
			kind = Renewed
		}
		name, err := s.chooseName(key, r, asked.As, in.Name)
		if err != nil {
			return waits, err
		}
		return Event{Kind: kind, Name: name, Text: "requests crossed"}, d.grant(key, r, in, in.Ask, sooner(in.Expires, asked.Expires), name)
	}
	if p := r.Pair; p != nil && !p.over(now) && p.has(in.Parent) && in.Ask.Within(p.Mine.Ports) && sooner(in.Expires, p.Mine.Expires) == in.Expires {
		return Event{Kind: Renewed, Name: r.Name, Text: "fresh secrets, nothing new asked"}, d.grant(key, r, in, in.Ask, in.Expires, r.Name)
	}
	return waits, nil
}

// limitStrangers keeps a flood of keys from filling the store. What was taken back before
// it came is cheaper to make than a request, so it drives out only its like.
func (d *draft) limitStrangers(newcomer crypto.PublicKey) {
	var waiting, strangers, strays crowd
	for key, r := range d.s.book {
		switch {
		case key == newcomer || !r.stranger():
		case r.stray():
			strays.add(key, r)
		default:
			if strangers.add(key, r); r.In != nil {
				waiting.add(key, r)
			}
		}
	}
	for _, c := range []struct {
		crowd
		most int
	}{{strangers, d.s.limits.strangers}, {waiting, d.s.limits.pending}, {strays, d.s.limits.pending}} {
		if c.n >= c.most {
			d.rel[c.oldest] = nil
		}
	}
}

// A crowd counts relations and knows which was not heard for the longest time.
type crowd struct {
	n      int
	oldest crypto.PublicKey
	heard  int64
}

func (c *crowd) add(key crypto.PublicKey, r *relation) {
	if c.n++; c.n == 1 || r.Touched < c.heard {
		c.oldest, c.heard = key, r.Touched
	}
}

func (d *draft) receiveTerms(r *relation, m *message) Event {
	t := terms{m.Serial, m.Serial, m.Offer, expiryUnix(m.Statement)}
	r.High = max(r.High, m.Serial)
	switch {
	case r.Pair != nil && m.Serial > r.Pair.Theirs.Serial:
		r.Pair.Theirs = t
		return Event{Kind: Changed}
	case r.Pair == nil && len(r.Out) > 0 && (r.Held == nil || r.Held.Serial < m.Serial):
		r.Held = &t
		return Event{Kind: Changed, Text: "ahead of the grant that it changes"}
	case r.Pair == nil && len(r.Out) == 0:
		return Event{Err: ErrUnexpected}
	}
	return Event{Kind: Duplicate}
}

func (d *draft) receiveGrant(r *relation, m *message) (Event, error) {
	s := d.s
	o := r.request(m.Parent)
	switch {
	case o == nil && r.Pair.has(m.id):
		return Event{Kind: Duplicate}, nil
	case o == nil, m.Serial <= o.Serial:
		return Event{Err: ErrUnexpected}, nil
	case passed(expiryUnix(m.Statement), s.now(), Grace):
		return Event{Err: ErrExpired}, nil
	case m.card != nil && m.addr != r.Addr:
		return Event{Err: errors.New("the address differs from the one that was asked")}, nil
	}
	if err := s.checkAddress(r.Addr, m.Issuer); err != nil {
		return Event{Err: err}, nil
	}
	slot := &slotRecord{
		ID: m.id, Static: o.Static, Remote: raw32(m.Tunnel), Initiator: true, Request: o.Serial, Grant: m.Serial,
		Secret: raw32(crypto.NewPairSecret(o.ID, m.id, o.Random, m.Random)),
		Mine:   terms{o.Serial, o.Serial, o.Offer, o.Expires}, Theirs: terms{m.Serial, o.Serial, m.Offer, expiryUnix(m.Statement)},
	}
	kind, last := Renewed, max(r.Last, r.High)
	if r.Pair == nil {
		kind = Granted
		r.Pair = &pair{Granted: s.now().Unix(), Reason: o.Reason}
	}
	p := r.Pair
	p.Mine, p.Theirs = later(p.Mine, slot.Mine), later(p.Theirs, slot.Theirs)
	if r.Held != nil {
		p.Theirs = later(p.Theirs, *r.Held)
	}
	r.Held = nil
	if m.card != nil && m.card.Serial > r.Card.Serial {
		r.Card = m.card
	}
	if r.Name == "" {
		r.Name = s.granterName(m, r, o)
	}
	if !p.insert(slot, o.Parent) {
		kind = Changed // a newer pair is in force already; the terms may still be news
	}
	r.High = max(r.High, m.Serial)
	r.Out = slices.DeleteFunc(r.Out, func(x *outgoing) bool { return x.ID == o.ID })
	d.finish(m.Issuer, r, o.Serial)
	d.unpost(m.Issuer, func(x *mailRecord) bool { return x.Class == mailRequest && x.Serial <= o.Serial })
	if in := r.In; in != nil && in.Serial < m.Serial && in.Ask.Within(p.Mine.Ports) {
		r.In = nil // the grant was made in its stead
	}
	d.witness(m.Serial, last)
	return Event{Kind: kind, Name: r.Name}, nil
}

// granterName names a peer whose grant arrived: nobody is there to be asked, so
// a name that does not do is replaced.
func (s *Store) granterName(m *message, r *relation, o *outgoing) string {
	if name, err := s.chooseName(m.Issuer, r, o.As, m.Name); err == nil {
		return name
	}
	return s.fallbackName(m.Issuer)
}

// receiveRevoke also remembers the word of a stranger: what it takes back may come later.
func (d *draft) receiveRevoke(r *relation, m *message) Event {
	if m.Serial <= r.Cut {
		return Event{Kind: Duplicate}
	}
	if r.Stray = r.stranger(); r.Stray {
		r.Touched = d.s.now().UnixMilli()
		d.limitStrangers(m.Issuer)
	}
	ev := Event{Kind: Revoked, Name: r.Name}
	r.High = max(r.High, m.Serial)
	r.void(m.Serial)
	d.forgetAnswer(m.Issuer, r)
	d.unpost(m.Issuer, func(x *mailRecord) bool { return x.Class != mailRevoke && x.Rests <= m.Serial })
	return ev
}
