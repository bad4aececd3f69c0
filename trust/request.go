package trust

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// maxOut is how many unanswered requests to one key are remembered.
const maxOut = 4

// RequestOptions says what to ask of whom.
type RequestOptions struct {
	Card   crypto.Card // of the receiver, checked
	Addr   [6]byte     // that its key and counter give
	As     string      // petname for the receiver; empty: what it suggests
	Ask    Scope       // what we want to reach there
	Offer  Scope       // what it may reach here
	TTL    time.Duration
	Reason string
	Invite []byte // secret of an invite, or none
}

// Request asks a key for trust, or a peer for other ports or fresh secrets. The
// same request again, while unanswered, sends the stored one again. If a request
// of the other side waits that fits (see the package comment) it is granted
// instead, and Pending.Granted says so.
func (s *Store) Request(o RequestOptions) (Pending, error) {
	key := o.Card.Key
	switch {
	case key.IsZero() || key == s.key:
		return Pending{}, errors.New("trust: request: the card is ours or empty")
	case o.TTL < 0:
		return Pending{}, errors.New("trust: request: ttl is negative")
	case len(o.Invite) != 0 && len(o.Invite) != inviteSize:
		return Pending{}, errors.New("trust: request: invite of wrong length")
	}
	if err := errors.Join(o.Ask.check(), o.Offer.check()); err != nil {
		return Pending{}, fmt.Errorf("%w: %w", ErrScope, err)
	}
	o.Reason = CleanText(o.Reason, maxReason)
	d := s.begin()
	defer d.end()
	if err := s.granting(); err != nil {
		return Pending{}, err
	}
	r := d.relation(key)
	if err := d.prepareRequest(r, &o); err != nil {
		return Pending{}, err
	}
	if asked := r.asked(); asked != nil && asked.same(o) && !passed(asked.Expires, s.now(), 0) {
		if err := d.mailAgain(key, r, mailRequest, asked.Signed, asked.Serial, asked.Serial); err != nil {
			return Pending{}, err
		}
		return r.outgoing(key, asked), d.commit()
	}
	granted, err := d.grantInstead(key, r, o)
	if err != nil {
		return Pending{}, err
	}
	if granted != nil && o.Ask.Within(granted.Offer) {
		return *granted, d.commit()
	}
	p, err := d.request(key, r, o)
	if err != nil {
		return Pending{}, err
	}
	p.Granted = granted != nil
	return p, d.commit()
}

func (d *draft) prepareRequest(r *relation, o *RequestOptions) (err error) {
	key := o.Card.Key
	if r.Blocked {
		return fmt.Errorf("trust: request: %s: %w", key, ErrBlocked)
	}
	if r.Card != nil && r.Addr != o.Addr {
		return fmt.Errorf("trust: request: %s: the address differs from the one on record", key)
	}
	if err := d.s.checkAddress(o.Addr, key); err != nil {
		return err
	}
	if o.As != "" {
		if o.As, err = d.s.validName(o.As); err != nil {
			return err
		}
		if other, ok := d.s.nameOwner(o.As, key); ok {
			return fmt.Errorf("trust: request: %q is the name of %s: %w", o.As, other, ErrNameTaken)
		}
	}
	if r.Card == nil || r.Card.Serial <= o.Card.Serial {
		r.Card = newCardRecord(o.Card)
	}
	r.Addr = o.Addr
	return nil
}

func (a *outgoing) same(o RequestOptions) bool {
	return slices.Equal(a.Ask, o.Ask) && slices.Equal(a.Offer, o.Offer) && a.TTL == int64(o.TTL) &&
		a.Reason == o.Reason && a.As == o.As && bytes.Equal(a.Invite, o.Invite)
}

// mailAgain posts a stored statement unless it still lies in the outbox.
func (d *draft) mailAgain(key crypto.PublicKey, r *relation, class mailClass, signed []byte, serial, rests uint64) error {
	for _, m := range d.s.outbox {
		if m.To == key && m.Class == class && m.Serial == serial {
			return nil
		}
	}
	return d.post(key, r.Card, class, signed, serial, rests)
}

// grantInstead grants a waiting request when our own crosses it: the higher key
// if what is asked is within what it offers, the lower key, whose request would
// stand, only if nothing is left to ask.
func (d *draft) grantInstead(key crypto.PublicKey, r *relation, o RequestOptions) (*Pending, error) {
	in := r.In
	if in == nil || in.Stale || r.stateLost(in) || !in.Ask.Within(o.Offer) || passed(in.Expires, d.s.now(), 0) {
		return nil, nil
	}
	if d.s.key.Compare(key) < 0 && !o.Ask.Within(in.Offer) {
		return nil, nil
	}
	name, err := d.s.chooseName(key, r, o.As, in.Name)
	if err != nil {
		return nil, err
	}
	p := r.incoming(key)
	p.Granted = true
	return &p, d.grant(key, r, in, in.Ask, sooner(in.Expires, d.s.expiry(o.TTL)), name)
}

// expiry is the wire form of a time to live from now; 0 is for ever.
func (s *Store) expiry(ttl time.Duration) int64 {
	if ttl == 0 {
		return 0
	}
	return s.now().Add(ttl).Unix()
}

func (d *draft) request(key crypto.PublicKey, r *relation, o RequestOptions) (Pending, error) {
	s := d.s
	st, err := d.statement(KindRequest, key, r)
	if err != nil {
		return Pending{}, err
	}
	static, err := d.secrets(&st)
	if err != nil {
		return Pending{}, err
	}
	if r.Pair != nil {
		st.Parent = r.Pair.newest().ID
	}
	expires := s.expiry(o.TTL)
	st.Expires = timeOf(expires)
	st.Ask, st.Offer, st.Invite = o.Ask, o.Offer, o.Invite
	st.Name, st.Reason, st.Card = s.cfg.Name, o.Reason, s.cfg.Card()
	signed, err := st.Sign(s.cfg.Key)
	if err != nil {
		return Pending{}, fmt.Errorf("trust: request: %w", err)
	}
	out := &outgoing{
		ID: statementID(signed), Random: st.Random, Static: raw32(static), Serial: st.Serial, Expires: expires, Parent: st.Parent,
		TTL: int64(o.TTL), Ask: o.Ask, Offer: o.Offer, As: o.As, Reason: o.Reason, Invite: o.Invite, Signed: signed, Sent: s.now().UnixMilli(),
	}
	if r.Out = append(r.Out, out); len(r.Out) > maxOut {
		r.Out = slices.Delete(r.Out, 0, len(r.Out)-maxOut)
	}
	r.Last, r.Stray = st.Serial, false
	return r.outgoing(key, out), d.post(key, r.Card, mailRequest, signed, st.Serial, st.Serial)
}

// statementID is the ID of a signed statement.
func statementID(signed []byte) raw32 {
	return sha256.Sum256(signed[:len(signed)-crypto.SignatureSize])
}

// grant answers a request: a new slot, durable before the mail goes out.
func (d *draft) grant(key crypto.PublicKey, r *relation, in *incoming, ports Scope, expires int64, name string) error {
	s := d.s
	if err := s.checkAddress(r.Addr, key); err != nil {
		return err
	}
	last := r.Last
	st, err := d.statement(KindGrant, key, r)
	if err != nil {
		return err
	}
	static, err := d.secrets(&st)
	if err != nil {
		return err
	}
	st.Parent, st.Expires, st.Ask, st.Offer = in.ID, timeOf(expires), in.Offer, ports
	st.Name, st.Card = s.cfg.Name, s.cfg.Card()
	signed, err := st.Sign(s.cfg.Key)
	if err != nil {
		return fmt.Errorf("trust: grant: %w", err)
	}
	id := statementID(signed)
	slot := &slotRecord{
		ID: id, Static: raw32(static), Remote: in.Tunnel, Request: in.Serial, Grant: st.Serial,
		Secret: raw32(crypto.NewPairSecret(in.ID, id, in.Random, st.Random)),
		Mine:   terms{st.Serial, in.Serial, ports, expires}, Theirs: terms{in.Serial, in.Serial, in.Offer, in.Expires},
	}
	if r.Pair == nil {
		r.Pair = &pair{Granted: s.now().Unix()}
	}
	p := r.Pair
	p.insert(slot, in.Parent)
	p.Mine, p.Theirs = later(p.Mine, slot.Mine), later(p.Theirs, slot.Theirs)
	if r.Held != nil {
		p.Theirs = later(p.Theirs, *r.Held)
	}
	p.Reason, p.Answer = in.Reason, in.ID
	r.Last, r.In, r.Held, r.Name, r.Stray = st.Serial, nil, nil, name, false
	d.finish(key, r, 0)
	d.answer[key] = signed
	d.witness(in.Serial, last)
	return d.post(key, r.Card, mailGrant, signed, st.Serial, in.Serial)
}

// finish marks the requests of ours that need no grant any more: those before
// the one that was answered, and those for which the pair already has all that
// they ask. A grant that is under way to one of them is still taken, however
// late, so that both sides end with the same slots.
func (d *draft) finish(key crypto.PublicKey, r *relation, answered uint64) {
	for i, o := range r.Out {
		if o.Finished || o.Serial > answered && !o.Ask.Within(r.Pair.Theirs.Ports) {
			continue
		}
		done := *o
		done.Finished = true
		r.Out[i] = &done
		d.unpost(key, func(m *mailRecord) bool { return m.Class == mailRequest && m.Serial == o.Serial })
	}
}
