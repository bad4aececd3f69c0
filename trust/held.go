package trust

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/pilotnet/pilot/crypto"
)

// HeldSize is the length of a Held.
const HeldSize = 16

// A Held names the newest terms that one side holds of the other: their serial and, since
// a state that was lost or restored may have given a serial twice, 8 bytes of their hash.
type Held [HeldSize]byte

const heldContext = "pilot terms v1"

func (t terms) held() (h Held) {
	b := binary.BigEndian.AppendUint64([]byte(heldContext), t.Serial)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires))
	sum := sha256.Sum256(t.Ports.append(b))
	binary.BigEndian.PutUint64(h[:], t.Serial)
	copy(h[8:], sum[:])
	return h
}

func (h Held) serial() uint64 { return binary.BigEndian.Uint64(h[:]) }

// Holds says which terms of a peer we hold, for it to compare; false if it is none.
func (s *Store) Holds(key crypto.PublicKey) (Held, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.book[key]
	if r == nil || r.Pair == nil {
		return Held{}, false
	}
	return r.Pair.Theirs.held(), true
}

// InForce reports whether these are our terms towards a peer.
func (s *Store) InForce(key crypto.PublicKey, held Held) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.book[key]
	return r != nil && r.Pair != nil && r.Pair.Mine.held() == held
}

// Remind takes which terms of ours a peer holds, by its own word in a session. If they are
// not those in force here it posts ours once more, and reports true: the same statement if
// the peer has not come to it, otherwise one above what the peer holds. With them goes the
// grant of a slot that the peer has not used yet: it may be lost, too. A peer that holds
// what a request of ours offers has granted it, so that request goes again, for the answer.
func (s *Store) Remind(key crypto.PublicKey, held Held) (said bool, err error) {
	d := s.begin()
	defer d.end()
	r := s.book[key]
	if r == nil || r.Pair == nil || held.serial() >= maxSerial || s.granting() != nil {
		return false, nil
	}
	if mine := r.Pair.Mine; mine.held() == held || d.waits(key, mine.Serial) {
		return false, nil
	}
	r = d.relation(key)
	if err := d.sayAgain(key, r, held); err != nil {
		return false, fmt.Errorf("trust: remind %s: %w", key, err)
	}
	return true, d.commit()
}

// waits reports whether the statement of this serial is still in the outbox.
func (d *draft) waits(key crypto.PublicKey, serial uint64) bool {
	for _, m := range d.s.outbox {
		if m.To == key && m.Serial == serial {
			return true
		}
	}
	return false
}

func (d *draft) sayAgain(key crypto.PublicKey, r *relation, held Held) error {
	p := r.Pair
	for _, o := range r.Out {
		if offer := (terms{o.Serial, o.Serial, o.Offer, o.Expires}); !o.Finished && held.serial() > p.Mine.Serial && held == offer.held() {
			return d.mailAgain(key, r, mailRequest, o.Signed, o.Serial, o.Serial)
		}
	}
	if p.Next != nil && !p.Next.Initiator {
		if err := d.answerAgain(key, r, p.Answer); err != nil {
			return err
		}
	}
	if mine := p.Mine; held.serial() < mine.Serial && mine.Rests == mine.Serial {
		return d.postTerms(key, r, Statement{Kind: KindGrant, Serial: mine.Serial, Issuer: d.s.key, Subject: key, Head: d.s.state.Head + 1})
	}
	r.Last = max(r.Last, held.serial())
	return d.sayTerms(key, r, p.Mine.Ports, p.Mine.Expires)
}

// sayTerms makes new terms of ours and posts them.
func (d *draft) sayTerms(key crypto.PublicKey, r *relation, ports Scope, expires int64) error {
	st, err := d.statement(KindGrant, key, r)
	if err != nil {
		return err
	}
	r.Pair.Mine = terms{st.Serial, st.Serial, ports, expires}
	r.Last = st.Serial
	return d.postTerms(key, r, st)
}

// postTerms posts our terms as they are, in a grant without secrets.
func (d *draft) postTerms(key crypto.PublicKey, r *relation, st Statement) error {
	p := r.Pair
	st.Offer, st.Expires = p.Mine.Ports, timeOf(p.Mine.Expires)
	signed, err := st.Sign(d.s.cfg.Key)
	if err != nil {
		return err
	}
	return d.post(key, r.Card, mailTerms, signed, st.Serial, p.newest().Request)
}
