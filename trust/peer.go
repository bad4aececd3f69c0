package trust

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// PeerState says whether trust is in force.
type PeerState uint8

// The states of a peer.
const (
	Active    PeerState = 1
	Expired   PeerState = 2
	Suspended PeerState = 3 // the store may be a restored backup; see Store.Suspended
)

func (s PeerState) String() string {
	switch s {
	case Active:
		return "active"
	case Expired:
		return "expired"
	case Suspended:
		return "suspended"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// A Peer is a key that we trust, or did until it expired.
type Peer struct {
	Key           crypto.PublicKey
	Addr          [6]byte
	Name          string // petname, unique among the peers
	Card          crypto.Card
	State         PeerState
	In, Out       Scope     // what the peer may reach here; what we may reach there
	Expires       time.Time // the earlier of both sides' words; zero: never
	Granted       time.Time
	Reason        string // of the request, cleaned; still untrusted text
	Current, Next *Slot  // read-only; at least one is there
	StateLost     bool   // a waiting request shows that the peer lost its state
}

// A Slot holds the secrets of one request and its grant.
type Slot struct {
	ID           [32]byte
	Static       crypto.DHPrivate
	RemoteStatic crypto.DHPublic
	Secret       crypto.PairSecret
	Initiator    bool // the request was ours
	Proven       bool // Confirmed told that the peer holds it
}

// Pending is a request that waits: for approve here, or for the answer of its receiver.
type Pending struct {
	ID          [32]byte
	Key         crypto.PublicKey
	Addr        [6]byte
	Fingerprint crypto.Fingerprint
	Name        string // incoming: the suggested name, cleaned, untrusted; outgoing: the petname that is to be
	Ask, Offer  Scope  // as the request says: its issuer asks for Ask and offers Offer
	Reason      string // cleaned, untrusted
	Expires     time.Time
	Received    time.Time // outgoing: when it was made
	StateLost   bool      // a known key that lost its state
	Stale       bool      // its serial is not above the highest seen: a reinstall, a clock, or a replay
	Crossing    bool      // each side waits for the other's answer
	Renewal     bool      // the key is a peer already
	Granted     bool      // only from Request: a waiting request of the other side was granted instead
}

// Mail is a sealed statement on its way to the home servers in Card.
type Mail struct {
	ID     uint64
	To     crypto.PublicKey
	Card   crypto.Card
	Sealed []byte
	Kind   Kind
}

// EventKind says what a received statement led to.
type EventKind uint8

// The kinds of event.
const (
	RequestPending EventKind = iota + 1 // a request waits for approve; Err: why an invite in it does not hold
	Granted                             // trust is in force that was not before
	Renewed                             // a pair got new secrets
	Changed                             // the peer changed scope or expiry
	Revoked                             // the peer revoked, or withdrew its request
	InviteUsed                          // an invite was used: trust is in force
	InviteReused                        // an invite was used again: Text names both keys; the request waits
	Duplicate                           // seen before; an answer that exists was put into the outbox again
	Refused                             // Err says why; nothing changed
)

func (k EventKind) String() string {
	names := [...]string{"", "request pending", "granted", "renewed", "changed", "revoked", "invite used", "invite used again", "duplicate", "refused"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// An Event is the outcome of Receive.
type Event struct {
	Kind EventKind
	Peer crypto.PublicKey // zero when nobody's signature was good
	Name string           // petname, or for a request the suggested name
	Text string           // one line for people, made of trusted parts only
	Err  error
}

func timeOf(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(unix, 0).UTC()
}

func (r *slotRecord) slot() *Slot {
	if r == nil {
		return nil
	}
	return &Slot{ID: r.ID, Static: crypto.DHPrivate(r.Static), RemoteStatic: crypto.DHPublic(r.Remote), Secret: crypto.PairSecret(r.Secret), Initiator: r.Initiator, Proven: r.Proven}
}

// peer builds the view of a relation with a pair, but for State.
func (r *relation) peer(key crypto.PublicKey) Peer {
	p := r.Pair
	return Peer{
		Key: key, Addr: r.Addr, Name: r.Name, Card: r.Card.card(key),
		In: p.Mine.Ports, Out: p.Theirs.Ports,
		Expires: timeOf(sooner(p.Mine.Expires, p.Theirs.Expires)), Granted: timeOf(p.Granted), Reason: p.Reason,
		Current: p.Current.slot(), Next: p.Next.slot(), StateLost: r.stateLost(r.In),
	}
}

// stateOf says whether the trust of a relation with a pair is in force. The caller
// holds mu.
func (s *Store) stateOf(r *relation, now time.Time) PeerState {
	switch {
	case r.Pair.over(now):
		return Expired
	case s.state.Suspended != nil:
		return Suspended
	}
	return Active
}

// Peers returns all peers by name. Slots are shared and read-only.
func (s *Store) Peers() []Peer {
	sorted := s.sortedPeers()
	s.mu.RLock()
	defer s.mu.RUnlock()
	list, now := make([]Peer, len(sorted)), s.now()
	for i, p := range sorted {
		list[i] = *p
		list[i].State = Expired // a peer that was revoked just now is not active
		if r := s.book[p.Key]; r != nil && r.Pair != nil {
			list[i].State = s.stateOf(r, now)
		}
	}
	return list
}

// sortedPeers returns the views of all peers; only those that changed are built.
func (s *Store) sortedPeers() []*Peer {
	s.mu.RLock()
	sorted := s.sorted
	s.mu.RUnlock()
	if sorted != nil {
		return sorted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sorted = make([]*Peer, 0, len(s.views))
	for key, r := range s.book {
		if r.Pair == nil {
			continue
		}
		if s.views[key] == nil {
			view := r.peer(key)
			s.views[key] = &view
		}
		sorted = append(sorted, s.views[key])
	}
	slices.SortFunc(sorted, func(a, b *Peer) int { return cmp.Or(strings.Compare(a.Name, b.Name), a.Key.Compare(b.Key)) })
	s.sorted = sorted
	return sorted
}

// Peer returns one peer.
func (s *Store) Peer(key crypto.PublicKey) (Peer, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.book[key]
	if r == nil || r.Pair == nil {
		return Peer{}, false
	}
	p := r.peer(key)
	p.State = s.stateOf(r, s.now())
	return p, true
}

// Lookup returns the peer with the fingerprint.
func (s *Store) Lookup(fp crypto.Fingerprint) (Peer, bool) {
	s.mu.RLock()
	key, ok := s.byPrint[fp]
	s.mu.RUnlock()
	if !ok {
		return Peer{}, false
	}
	return s.Peer(key)
}

// NextExpiry returns when the state of a peer next changes by time alone; zero: never.
func (s *Store) NextExpiry() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	now, next := s.now(), time.Time{}
	for _, r := range s.book {
		if r.Pair == nil || r.Pair.over(now) {
			continue
		}
		theirs := r.Pair.Theirs.Expires
		if theirs != 0 {
			theirs += int64(Grace / time.Second)
		}
		if t := timeOf(sooner(r.Pair.Mine.Expires, theirs)); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Incoming returns the requests that wait for approve, oldest first.
func (s *Store) Incoming() []Pending {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []Pending
	for key, r := range s.book {
		if r.In != nil && !r.Blocked {
			list = append(list, r.incoming(key))
		}
	}
	slices.SortFunc(list, byReceived)
	return list
}

func byReceived(a, b Pending) int {
	return cmp.Or(a.Received.Compare(b.Received), a.Key.Compare(b.Key))
}

func (r *relation) incoming(key crypto.PublicKey) Pending {
	in := r.In
	return Pending{
		ID: in.ID, Key: key, Addr: r.Addr, Fingerprint: key.Fingerprint(), Name: in.Name, Ask: in.Ask, Offer: in.Offer, Reason: in.Reason,
		Expires: timeOf(in.Expires), Received: time.UnixMilli(in.Received).UTC(), StateLost: r.stateLost(in), Stale: in.Stale,
		Crossing: r.asked() != nil, Renewal: r.Pair != nil,
	}
}

// Outgoing returns our requests that wait for an answer, oldest first; of several
// to one key the newest.
func (s *Store) Outgoing() []Pending {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []Pending
	for key, r := range s.book {
		if o := r.asked(); o != nil {
			list = append(list, r.outgoing(key, o))
		}
	}
	slices.SortFunc(list, byReceived)
	return list
}

func (r *relation) outgoing(key crypto.PublicKey, o *outgoing) Pending {
	return Pending{
		ID: o.ID, Key: key, Addr: r.Addr, Fingerprint: key.Fingerprint(), Name: o.As, Ask: o.Ask, Offer: o.Offer, Reason: o.Reason,
		Expires: timeOf(o.Expires), Received: time.UnixMilli(o.Sent).UTC(), Crossing: r.In != nil, Renewal: r.Pair != nil,
	}
}

// Blocked returns the keys that were blocked.
func (s *Store) Blocked() []crypto.PublicKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []crypto.PublicKey
	for key, r := range s.book {
		if r.Blocked {
			list = append(list, key)
		}
	}
	slices.SortFunc(list, crypto.PublicKey.Compare)
	return list
}
