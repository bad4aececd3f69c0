package trust

import (
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// A relation is all that the store knows about one other key, in one record of
// the database: whatever happens, the parts of a pair change together or not
// at all. What a pointer here points to is never changed, only replaced.
type relation struct {
	Card    *cardRecord `json:"card,omitempty"`
	Addr    [6]byte     `json:"addr"`
	Name    string      `json:"name,omitempty"` // petname; only a peer has one
	Cut     uint64      `json:"cut,omitempty"`  // serials up to this are void, in both directions
	High    uint64      `json:"high,omitempty"` // highest serial seen from the key
	Last    uint64      `json:"last,omitempty"` // highest serial used towards the key
	Seen    []raw32     `json:"seen,omitempty"` // the latest requests that were processed
	Blocked bool        `json:"blocked,omitempty"`
	Touched int64       `json:"touched,omitempty"` // when a stranger was last heard, unix milliseconds
	Stray   bool        `json:"stray,omitempty"`   // Cut is only what a stranger took back
	Pair    *pair       `json:"pair,omitempty"`
	In      *incoming   `json:"in,omitempty"`
	Out     []*outgoing `json:"out,omitempty"`  // oldest first
	Held    *terms      `json:"held,omitempty"` // terms that overtook the grant they change
}

// A pair is trust in force: two slots of secrets and what each side lets the other reach.
type pair struct {
	Current *slotRecord `json:"current,omitempty"` // confirmed, or what the peer is likely to hold
	Next    *slotRecord `json:"next,omitempty"`    // the newest, not confirmed yet
	Mine    terms       `json:"mine"`              // what the peer may reach here
	Theirs  terms       `json:"theirs"`            // what we may reach there
	Granted int64       `json:"granted"`           // unix seconds
	Reason  string      `json:"reason,omitempty"`
	Answer  raw32       `json:"answer"`          // the request whose grant is kept for redelivery
	Invite  raw32       `json:"invite,omitzero"` // hash of the invite that granted it, if one did
}

// terms are one side's word on scope and expiry; the highest serial of a side
// counts. They are void when the serial on which they rest is: the request of
// their pair, or for a change of terms their own.
type terms struct {
	Serial  uint64 `json:"serial"`
	Rests   uint64 `json:"rests"`
	Ports   Scope  `json:"ports"`
	Expires int64  `json:"expires,omitempty"` // unix seconds; 0: never
}

type slotRecord struct {
	ID        raw32  `json:"id"` // of the grant
	Static    raw32  `json:"static"`
	Remote    raw32  `json:"remote"`
	Secret    raw32  `json:"secret"`
	Initiator bool   `json:"initiator,omitempty"` // the request was ours
	Request   uint64 `json:"request"`             // serials of the two statements
	Grant     uint64 `json:"grant"`
	Mine      terms  `json:"mine"` // what the two statements said
	Theirs    terms  `json:"theirs"`
	Proven    bool   `json:"proven,omitempty"` // data was opened under it, so the peer holds it
}

// incoming is a request that waits for approve.
type incoming struct {
	ID       raw32  `json:"id"`
	Random   raw32  `json:"random"`
	Tunnel   raw32  `json:"tunnel"`
	Parent   raw32  `json:"parent"`
	Serial   uint64 `json:"serial"`
	Expires  int64  `json:"expires,omitempty"`
	Ask      Scope  `json:"ask"`
	Offer    Scope  `json:"offer"`
	Name     string `json:"name,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Received int64  `json:"received"`
	Stale    bool   `json:"stale,omitempty"` // its serial was not above the highest seen
}

// outgoing is a request of ours with our half of the secrets.
type outgoing struct {
	ID       raw32  `json:"id"`
	Random   raw32  `json:"random"`
	Static   raw32  `json:"static"`
	Serial   uint64 `json:"serial"`
	Expires  int64  `json:"expires,omitempty"`
	Parent   raw32  `json:"parent"`
	TTL      int64  `json:"ttl,omitempty"`
	Ask      Scope  `json:"ask"`
	Offer    Scope  `json:"offer"`
	As       string `json:"as,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Invite   []byte `json:"invite,omitempty"`
	Signed   []byte `json:"signed"`
	Sent     int64  `json:"sent"`
	Finished bool   `json:"finished,omitempty"` // needs no answer any more, but one under way is taken
}

// A mailClass tells which mail to the same key a newer one replaces.
type mailClass uint8

const (
	mailRequest mailClass = 1
	mailGrant   mailClass = 2
	mailRevoke  mailClass = 3
	mailTerms   mailClass = 4
)

func (c mailClass) kind() Kind {
	if c == mailTerms {
		return KindGrant
	}
	return Kind(c)
}

type mailRecord struct {
	To     crypto.PublicKey `json:"to"`
	Card   *cardRecord      `json:"card"`
	Sealed []byte           `json:"sealed"`
	Class  mailClass        `json:"class"`
	Serial uint64           `json:"serial"`
	Rests  uint64           `json:"rests"` // the mail is void when this serial is
}

type inviteRecord struct {
	Ports   Scope               `json:"ports"`
	Expires int64               `json:"expires"`
	For     *crypto.Fingerprint `json:"for,omitempty"`
	Name    string              `json:"name,omitempty"`
	TTL     int64               `json:"ttl,omitempty"` // of the trust it gives, seconds
	Offer   Scope               `json:"offer,omitempty"`
	Made    int64               `json:"made,omitempty"`
	Uses    int                 `json:"uses,omitempty"` // 0: one
	UsedBy  *crypto.PublicKey   `json:"used_by,omitempty"`
	Used    int64               `json:"used,omitempty"`
	By      []inviteUse         `json:"by,omitempty"` // of an invite for several
}

type inviteUse struct {
	Key crypto.PublicKey `json:"key"`
	At  int64            `json:"at"`
}

// stateRecord is the store's own state, written with every transaction.
type stateRecord struct {
	Schema int              `json:"schema"`
	Key    crypto.PublicKey `json:"key"`
	Floor  int64            `json:"floor,omitempty"` // unix milliseconds
	Boot   int64            `json:"boot,omitempty"`  // time since boot when the floor was written, nanoseconds
	Mail   uint64           `json:"mail"`            // last mail ID given out
	Head   uint64           `json:"head"`            // changes of relations and invites so far
	Shown  []shownHead      `json:"shown,omitempty"` // the latest heads of this state, oldest first

	Settled   uint64      `json:"settled,omitempty"` // heads up to this count are not judged
	Suspended *suspension `json:"suspended,omitempty"`

	Tally tally `json:"tally"`
}

type cardRecord struct {
	Counter      uint64          `json:"counter"`
	Seal         []byte          `json:"seal"`
	Registration raw32           `json:"registration"`
	Servers      []crypto.Server `json:"servers"`
	Serial       uint64          `json:"serial"`
}

func newCardRecord(c crypto.Card) *cardRecord {
	return &cardRecord{Counter: c.Counter, Seal: c.Seal[:], Registration: raw32(c.Registration), Servers: slices.Clone(c.Servers), Serial: c.Serial}
}

func (c *cardRecord) card(key crypto.PublicKey) crypto.Card {
	if c == nil {
		return crypto.Card{Key: key}
	}
	card := crypto.Card{Key: key, Counter: c.Counter, Registration: crypto.DHPublic(c.Registration), Servers: slices.Clone(c.Servers), Serial: c.Serial}
	copy(card.Seal[:], c.Seal)
	return card
}

// raw32 is 32 bytes, in JSON as base64.
type raw32 [32]byte

func (r raw32) MarshalText() ([]byte, error) {
	return base64.RawStdEncoding.AppendEncode(nil, r[:]), nil
}

func (r *raw32) UnmarshalText(text []byte) error {
	b, err := base64.RawStdEncoding.AppendDecode(nil, text)
	if err != nil || len(b) != len(r) {
		return fmt.Errorf("trust: record: %d characters where 32 bytes should be", len(text))
	}
	copy(r[:], b)
	return nil
}

// Format keeps secrets out of logs, whatever the verb.
func (r raw32) Format(f fmt.State, _ rune) { fmt.Fprint(f, "32 bytes") }

func (r *relation) clone() *relation {
	if r == nil {
		return &relation{}
	}
	c := *r
	c.Seen, c.Out = slices.Clone(r.Seen), slices.Clone(r.Out)
	if r.Pair != nil {
		p := *r.Pair
		c.Pair = &p
	}
	return &c
}

// stranger reports whether nothing would be lost with the relation but the
// memory of a request that nobody granted.
func (r *relation) stranger() bool {
	return r.Pair == nil && len(r.Out) == 0 && (r.Cut == 0 || r.Stray) && !r.Blocked
}

// stray reports whether only what a stranger took back would be lost.
func (r *relation) stray() bool { return r.stranger() && r.Stray && r.In == nil }

func (r *relation) empty() bool {
	return r.stranger() && r.In == nil && r.High == 0 && r.Last == 0 && r.Cut == 0
}

// asked is our newest request that still wants an answer.
func (r *relation) asked() *outgoing {
	for _, o := range slices.Backward(r.Out) {
		if !o.Finished {
			return o
		}
	}
	return nil
}

func (r *relation) processed(id [32]byte) bool { return slices.Contains(r.Seen, raw32(id)) }

// remember notes that a request was processed.
func (r *relation) remember(id [32]byte, serial uint64) {
	const kept = 8
	r.High = max(r.High, serial)
	if r.Seen = append(r.Seen, raw32(id)); len(r.Seen) > kept {
		r.Seen = slices.Delete(r.Seen, 0, len(r.Seen)-kept)
	}
}

// stateLost reports whether a request shows that the key lost what we hold
// together: it names no pair, though one exists that its issuer made, or asked
// for, before.
func (r *relation) stateLost(in *incoming) bool {
	if in == nil || r.Pair == nil || in.Parent != (raw32{}) {
		return false
	}
	newest := r.Pair.newest()
	known := newest.Request
	if newest.Initiator {
		known = newest.Grant
	}
	return in.Serial > known || in.Stale
}

// void drops everything that rests on a statement up to the serial.
func (r *relation) void(serial uint64) {
	r.Cut = max(r.Cut, serial)
	if p := r.Pair; p != nil {
		if p.Current != nil && p.Current.Request <= r.Cut {
			p.Current = nil
		}
		if p.Next != nil && p.Next.Request <= r.Cut {
			p.Next = nil
		}
		if p.Current == nil && p.Next == nil {
			r.Pair, r.Name = nil, ""
		} else {
			p.voidTerms(r.Cut)
		}
	}
	if r.In != nil && r.In.Serial <= r.Cut {
		r.In = nil
	}
	if r.Held != nil && r.Held.Serial <= r.Cut {
		r.Held = nil
	}
	r.Out = slices.DeleteFunc(r.Out, func(o *outgoing) bool { return o.Serial <= r.Cut })
	if r.Pair == nil && r.In == nil && len(r.Out) == 0 {
		r.Card = nil
	}
}

// voidTerms takes back terms that rest on what was voided: those of the slots
// that remain count again.
func (p *pair) voidTerms(cut uint64) {
	if p.Mine.Rests <= cut {
		p.Mine = terms{}
	}
	if p.Theirs.Rests <= cut {
		p.Theirs = terms{}
	}
	for _, s := range []*slotRecord{p.Current, p.Next} {
		if s != nil {
			p.Mine, p.Theirs = later(p.Mine, s.Mine), later(p.Theirs, s.Theirs)
		}
	}
}

func later(a, b terms) terms {
	if b.Serial > a.Serial {
		return b
	}
	return a
}

func (p *pair) newest() *slotRecord {
	if p.Next != nil {
		return p.Next
	}
	return p.Current
}

func (p *pair) has(id raw32) bool {
	return p != nil && (p.Current != nil && p.Current.ID == id || p.Next != nil && p.Next.ID == id)
}

// insert places a new slot and reports whether it was taken. The two sides learn of slots
// in any order, so the order of grants decides: the newest grant is next. Of the others
// the newest one stays that the peer is known to hold: the request named it, the peer
// granted it, or data came under it. A grant of ours alone shows nothing: the request may
// have been void.
func (p *pair) insert(s *slotRecord, parent raw32) bool {
	newest, other := s, p.newest()
	if other != nil && (other.Grant > s.Grant || other.Grant == s.Grant && string(other.ID[:]) > string(s.ID[:])) {
		newest, other = other, s
	}
	if p.Next == nil { // one slot, or none
		if newest != s && newest.Proven {
			return false // it is final
		}
		p.Current, p.Next = other, newest
		return true
	}
	held := func(s *slotRecord) bool { return s.ID == parent || s.Initiator || s.Proven }
	if p.Current == nil || held(other) && (!held(p.Current) || other.Grant > p.Current.Grant) {
		p.Current = other
	}
	p.Next = newest
	return p.has(s.ID)
}

// over reports whether trust has ended: exactly by our own word, and with grace
// by the peer's, whose clock may differ.
func (p *pair) over(now time.Time) bool {
	return passed(p.Mine.Expires, now, 0) || passed(p.Theirs.Expires, now, Grace)
}

func passed(expires int64, now time.Time, grace time.Duration) bool {
	return expires != 0 && !now.Before(time.Unix(expires, 0).Add(grace))
}

// sooner returns the earlier of two expiries, of which 0 is never.
func sooner(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
