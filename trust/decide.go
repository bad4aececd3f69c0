package trust

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// ApproveOptions narrow a grant. The zero value grants what was asked.
type ApproveOptions struct {
	As    string         // petname; empty: what the peer suggests, or has
	Ports *Scope         // what the peer may reach; nil: what it asked, or may reach now
	TTL   *time.Duration // nil: as asked, or as it is now; 0: never expires
	All   bool           // spells out that all ports may be reached
}

// Approve grants the waiting request of a key. Without one it changes scope,
// expiry or name of a peer: at once here, and the peer is told.
func (s *Store) Approve(key crypto.PublicKey, o ApproveOptions) (Peer, error) {
	if o.TTL != nil && *o.TTL < 0 {
		return Peer{}, errors.New("trust: approve: ttl is negative")
	}
	if o.Ports != nil {
		if err := o.Ports.check(); err != nil {
			return Peer{}, fmt.Errorf("trust: approve: %w: %w", ErrScope, err)
		}
	}
	d := s.begin()
	defer d.end()
	known, err := s.book[key], s.granting()
	switch {
	case err != nil:
	case known == nil:
		err = fmt.Errorf("trust: approve: %s: %w", key, ErrNotFound)
	case known.Blocked:
		err = fmt.Errorf("trust: approve: %s: %w; unblock it first", key, ErrBlocked)
	case known.In != nil:
		err = d.approve(key, d.relation(key), o)
	case known.Pair != nil:
		err = d.amend(key, d.relation(key), o)
	default:
		err = fmt.Errorf("trust: approve: %s: no request waits: %w", key, ErrNotFound)
	}
	if err == nil {
		err = d.commit()
	}
	if err != nil {
		return Peer{}, err
	}
	p, _ := s.Peer(key)
	return p, nil
}

func (d *draft) approve(key crypto.PublicKey, r *relation, o ApproveOptions) error {
	in, now := r.In, d.s.now()
	ports, err := approvedPorts(o, in.Ask, in.Ask.All())
	if err != nil {
		return err
	}
	expires := in.Expires
	if passed(in.Expires, now, 0) {
		if o.TTL == nil || passed(in.Expires, now, Grace) {
			return fmt.Errorf("trust: approve: the request of %s: %w", key, ErrExpired)
		}
		expires = 0 // within grace: the clocks differ, and the word on this side is by our clock
	}
	if o.TTL != nil {
		expires = sooner(expires, d.s.expiry(*o.TTL))
	}
	name, err := d.s.chooseName(key, r, o.As, in.Name)
	if err != nil {
		return err
	}
	if err := d.grant(key, r, in, ports, expires, name); err != nil {
		return err
	}
	r.Pair.Invite = raw32{} // from now on it rests on this word
	return nil
}

// approvedPorts settles the scope of a grant. All ports need the word of both sides.
func approvedPorts(o ApproveOptions, asked Scope, askedAll bool) (Scope, error) {
	ports, spelled := asked, o.All
	if o.Ports != nil {
		ports, spelled = *o.Ports, true
	}
	if o.All {
		ports = slices.Clone(AllPorts)
	}
	switch {
	case ports.All() && !spelled:
		return nil, fmt.Errorf("trust: approve: %w: the request asks for all ports; say all, or which", ErrScope)
	case ports.All() && !askedAll:
		return nil, fmt.Errorf("trust: approve: %w: all ports can be granted only if the request asks for all", ErrScope)
	}
	return ports, nil
}

// amend changes the terms of a peer and tells it by a grant without secrets.
func (d *draft) amend(key crypto.PublicKey, r *relation, o ApproveOptions) error {
	s, p := d.s, r.Pair
	if o.As != "" {
		name, err := s.chooseName(key, r, o.As, "")
		if err != nil {
			return err
		}
		r.Name = name
	}
	if o.Ports == nil && o.TTL == nil && !o.All {
		return nil
	}
	ports := p.Mine.Ports
	if o.Ports != nil || o.All {
		var err error
		if ports, err = approvedPorts(o, ports, ports.All()); err != nil {
			return err
		}
	}
	expires := p.Mine.Expires
	if o.TTL != nil {
		expires = s.expiry(*o.TTL)
	}
	if err := d.sayTerms(key, r, ports, expires); err != nil {
		return fmt.Errorf("trust: approve: %w", err)
	}
	return nil
}

// Reject drops the waiting request of a key and says nothing to it. The same
// request is not shown again; a new one is.
func (s *Store) Reject(key crypto.PublicKey) error {
	d := s.begin()
	defer d.end()
	if r := s.book[key]; r == nil || r.In == nil {
		return fmt.Errorf("trust: reject: %s: %w", key, ErrNotFound)
	}
	d.relation(key).In = nil
	return d.commit()
}

// Revoke ends trust with a key: every statement between the two keys so far is
// void, requests included. The caller has dropped the peer from its packet path
// before. The revocation file is written first and needs no space on the disk;
// once it is synced, Revoke succeeds even if the database cannot be written.
func (s *Store) Revoke(key crypto.PublicKey) error {
	d := s.begin()
	defer d.end()
	r := s.book[key]
	if r == nil || r.Pair == nil && len(r.Out) == 0 && r.In == nil {
		return fmt.Errorf("trust: revoke: %s: %w", key, ErrNotFound)
	}
	return d.revoke(key, r.Blocked)
}

// Block revokes, if there is anything to revoke, and from now on drops every
// statement of the key unseen.
func (s *Store) Block(key crypto.PublicKey) error {
	if key.IsZero() || key == s.key {
		return errors.New("trust: block: no foreign key")
	}
	d := s.begin()
	defer d.end()
	return d.revoke(key, true)
}

func (d *draft) revoke(key crypto.PublicKey, blocked bool) error {
	s := d.s
	if s.closed {
		return fmt.Errorf("trust: %w", ErrClosed)
	}
	r := d.relation(key)
	serial, err := d.nextSerial(r)
	if err != nil {
		serial = maxSerial - 1 // the key used up all serials: nothing follows
	}
	fileErr := s.cuts.put(key, serial, blocked)
	d.cutOff(key, r, serial, blocked)
	dbErr := d.commit()
	if dbErr != nil {
		s.owe(&d.change) // revoked in memory whatever the disk says
		s.cfg.Logger.Warn("trust: revocation not in the store yet", "peer", key, "err", dbErr)
	}
	if fileErr != nil {
		s.cfg.Logger.Warn("trust: revocation not in its file", "peer", key, "err", fileErr)
		if dbErr != nil {
			return s.fails(fmt.Errorf("trust: revoke %s: %w: %w", key, ErrNotKept, fileErr))
		}
		return nil
	}
	if dbErr == nil {
		if err := s.cuts.grow(); err != nil {
			s.cfg.Logger.Warn("trust: revocation file did not grow", "err", err)
		}
	}
	return nil
}

// Retry writes what a full or read-only disk did not take: a revocation that is in force
// only as long as the program runs. It ends Trouble, or returns why it lasts.
func (s *Store) Retry() error {
	d := s.begin()
	defer d.end()
	if s.owed == nil && s.trouble == nil || s.closed {
		return nil
	}
	owed := newChange()
	if s.owed != nil {
		owed = *s.owed
	}
	for key, r := range owed.rel {
		rec := s.cuts.cuts[key]
		if r == nil || r.Cut == 0 || rec != nil && rec.serial >= r.Cut {
			continue
		}
		if err := s.cuts.put(key, r.Cut, r.Blocked); err != nil {
			return fmt.Errorf("trust: revoke %s: %w: %w", key, ErrNotKept, err)
		}
	}
	return d.commit()
}

// Unblock lets requests of the key be seen again.
func (s *Store) Unblock(key crypto.PublicKey) error {
	d := s.begin()
	defer d.end()
	if r := s.book[key]; r == nil || !r.Blocked {
		return fmt.Errorf("trust: unblock: %s: %w", key, ErrNotFound)
	}
	if err := s.granting(); err != nil {
		return err
	}
	r := d.relation(key)
	r.Blocked = false
	if err := s.cuts.put(key, r.Cut, false); err != nil {
		return err
	}
	return d.commit()
}

// Forget drops a key that is not trusted: its request, ours, or the remains of
// expired trust. What guards against replay stays.
func (s *Store) Forget(key crypto.PublicKey) error {
	d := s.begin()
	defer d.end()
	switch r := s.book[key]; {
	case r == nil || r.Pair == nil && r.In == nil && len(r.Out) == 0:
		return fmt.Errorf("trust: forget: %s: %w", key, ErrNotFound)
	case r.Pair != nil && !r.Pair.over(s.now()):
		return fmt.Errorf("trust: forget: %s: %w", key, ErrActive)
	}
	r := d.relation(key)
	r.Pair, r.In, r.Out, r.Held, r.Card, r.Name = nil, nil, nil, nil, nil, ""
	d.forgetAnswer(key, r)
	d.unpost(key, func(m *mailRecord) bool { return m.Class != mailRevoke })
	return d.commit()
}

// Rename gives a peer another petname.
func (s *Store) Rename(key crypto.PublicKey, name string) error {
	d := s.begin()
	defer d.end()
	if r := s.book[key]; r == nil || r.Pair == nil {
		return fmt.Errorf("trust: rename: %s: %w", key, ErrNotFound)
	}
	r := d.relation(key)
	name, err := s.chooseName(key, r, name, "")
	if err != nil {
		return err
	}
	r.Name = name
	return d.commit()
}

// Confirmed tells that a DATA frame was opened under a slot, so that the peer holds it
// too. If it is the next one, the current one is deleted.
func (s *Store) Confirmed(key crypto.PublicKey, slotID [32]byte) error {
	d := s.begin()
	defer d.end()
	r := s.book[key]
	if r == nil || !r.Pair.has(slotID) {
		return fmt.Errorf("trust: confirm: %s: %w", key, ErrNotFound)
	}
	slot := r.Pair.Next
	if slot == nil || slot.ID != raw32(slotID) {
		if slot = r.Pair.Current; slot.Proven {
			return nil
		}
	}
	r = d.relation(key)
	proven := *slot
	if proven.Proven = true; slot == r.Pair.Next {
		r.Pair.Next = nil
	}
	r.Pair.Current = &proven
	return d.commit()
}

// UpdateCard stores a newer card of a known key. An older one, or the same, is
// ignored.
func (s *Store) UpdateCard(card crypto.Card) error {
	s.mu.RLock()
	r := s.book[card.Key]
	s.mu.RUnlock()
	if r == nil || r.Card == nil {
		return fmt.Errorf("trust: update card: %s: %w", card.Key, ErrNotFound)
	}
	if card.Serial <= r.Card.Serial {
		return nil
	}
	if card.Counter != r.Card.Counter {
		addr, err := s.cfg.CheckCard(card)
		if err != nil {
			return fmt.Errorf("trust: update card: %w", err)
		}
		if addr != r.Addr {
			return fmt.Errorf("trust: update card: %s: the address differs from the one on record", card.Key)
		}
	}
	d := s.begin()
	defer d.end()
	n := d.relation(card.Key)
	if n.Card == nil || n.Card.Serial >= card.Serial {
		return nil
	}
	n.Card = newCardRecord(card)
	return d.commit()
}
