package trust

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A party is one agent of a test: its store, its clock and its card.
type party struct {
	t     testing.TB
	name  string
	dir   string
	key   crypto.PrivateKey
	seal  crypto.SealPrivate
	now   time.Time
	boot  time.Duration
	cards int // card checks
	tweak func(*Config)
	clear bool // mail is not sealed
	*Store
}

func newParty(t testing.TB, name string) *party {
	t.Helper()
	p := &party{t: t, name: name, dir: t.TempDir(), now: epoch, boot: time.Hour}
	p.key, p.seal = partyKeys(t, name)
	p.open()
	t.Cleanup(func() { p.Close() })
	return p
}

func partyKeys(t testing.TB, name string) (crypto.PrivateKey, crypto.SealPrivate) {
	t.Helper()
	seal, err := crypto.NewSealPrivate(sha256.Sum256([]byte("seal " + name)))
	if err != nil {
		t.Fatal(err)
	}
	return crypto.NewPrivateKey(sha256.Sum256([]byte(name))), seal
}

func (p *party) config() Config {
	c := Config{
		Dir: p.dir, Key: p.key, Seal: []crypto.SealPrivate{p.seal}, Name: p.name,
		Now: func() time.Time { return p.now }, Boot: func() time.Duration { return p.boot },
		CheckCard: func(c crypto.Card) ([6]byte, error) {
			p.cards++
			if c.Counter == 666 {
				return [6]byte{}, fmt.Errorf("counter does not give a node ID")
			}
			return addrOf(c.Key), nil
		},
		Card:   func() []byte { return signCard(p.t, p.key, p.card()) },
		NoSync: true,
	}
	if p.tweak != nil {
		p.tweak(&c)
	}
	return c
}

func (p *party) open() {
	p.t.Helper()
	s, err := Open(p.config())
	if err != nil {
		p.t.Fatal(err)
	}
	if p.Store = s; p.clear {
		s.sealer = clearMail{}
	}
}

func (p *party) reopen() {
	p.t.Helper()
	if err := p.Close(); err != nil {
		p.t.Fatal(err)
	}
	p.open()
}

// wipe loses the state but not the key.
func (p *party) wipe() {
	p.t.Helper()
	p.Close()
	p.dir = p.t.TempDir()
	p.open()
}

func (p *party) pub() crypto.PublicKey { return p.key.Public() }

func (p *party) card() crypto.Card {
	return crypto.Card{
		Key: p.pub(), Counter: 7, Seal: p.seal.Public(), Registration: testDH("reg " + p.name).Public(), Serial: 1,
		Servers: []crypto.Server{{Host: "rdv.example", Port: 3478, Key: testDH("rdv").Public()}},
	}
}

func testDH(seed string) crypto.DHPrivate {
	return crypto.DHPrivate(sha256.Sum256([]byte(seed)))
}

func signCard(t testing.TB, key crypto.PrivateKey, c crypto.Card) []byte {
	b, err := c.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addrOf(key crypto.PublicKey) (a [6]byte) {
	h := sha256.Sum256(key[:])
	copy(a[2:], h[:])
	return a
}

func scope(t testing.TB, text string) Scope {
	t.Helper()
	s, err := ParseScope(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask makes a request to another party.
func (p *party) ask(to *party, ports, offer string, change ...func(*RequestOptions)) Pending {
	p.t.Helper()
	r, err := p.tryAsk(to, ports, offer, change...)
	if err != nil {
		p.t.Fatalf("%s asks %s: %v", p.name, to.name, err)
	}
	return r
}

func (p *party) tryAsk(to *party, ports, offer string, change ...func(*RequestOptions)) (Pending, error) {
	p.t.Helper()
	o := RequestOptions{Card: to.card(), Addr: addrOf(to.pub()), Ask: scope(p.t, ports), Offer: scope(p.t, offer), Reason: "because"}
	for _, f := range change {
		f(&o)
	}
	return p.Request(o)
}

// mail takes everything out of the outbox that is for the party.
func (p *party) mail(to *party) (list []Mail) {
	p.t.Helper()
	for _, m := range p.Outbox() {
		if m.To == to.pub() {
			list = append(list, m)
			if err := p.Delivered(m.ID); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	return list
}

// take receives mail and returns the events.
func (p *party) take(mail []Mail) (events []Event) {
	p.t.Helper()
	for _, m := range mail {
		ev, err := p.Receive(m.Sealed)
		if err != nil {
			p.t.Fatalf("%s receives %s: %v", p.name, m.Kind, err)
		}
		events = append(events, ev)
	}
	return events
}

// send carries the mail of p to another party.
func (p *party) send(to *party) []Event {
	p.t.Helper()
	return to.take(p.mail(to))
}

// settle carries mail in both directions until none is left.
func settle(a, b *party) {
	for range 10 {
		if len(a.send(b))+len(b.send(a)) == 0 {
			return
		}
	}
	a.t.Fatalf("%s and %s go on writing to each other", a.name, b.name)
}

func (p *party) approve(from *party, change ...func(*ApproveOptions)) Peer {
	p.t.Helper()
	var o ApproveOptions
	for _, f := range change {
		f(&o)
	}
	peer, err := p.Approve(from.pub(), o)
	if err != nil {
		p.t.Fatalf("%s approves %s: %v", p.name, from.name, err)
	}
	return peer
}

// newest returns the newest slot towards a peer.
func (p *party) newest(of *party) *Slot {
	p.t.Helper()
	peer, ok := p.Peer(of.pub())
	if !ok {
		p.t.Fatalf("%s has no peer %s", p.name, of.name)
	}
	if peer.Next != nil {
		return peer.Next
	}
	return peer.Current
}

// confirm is what the first data under the newest slot does on both sides.
func confirm(a, b *party) {
	a.t.Helper()
	for _, x := range [][2]*party{{a, b}, {b, a}} {
		if err := x[0].Confirmed(x[1].pub(), x[0].newest(x[1]).ID); err != nil {
			a.t.Fatal(err)
		}
	}
}

// matches fails unless both newest slots make one tunnel.
func matches(a, b *party) {
	a.t.Helper()
	x, y := a.newest(b), b.newest(a)
	if err := slotsMatch(x, y); err != nil {
		a.t.Fatal(err)
	}
}

func slotsMatch(x, y *Slot) error {
	switch {
	case x.ID != y.ID:
		return fmt.Errorf("newest slots differ: %x %x", x.ID[:4], y.ID[:4])
	case x.Secret != y.Secret:
		return fmt.Errorf("secrets differ")
	case x.Static.Public() != y.RemoteStatic || y.Static.Public() != x.RemoteStatic:
		return fmt.Errorf("tunnel keys differ")
	case x.Initiator == y.Initiator:
		return fmt.Errorf("both or neither asked")
	}
	return nil
}

// trusted returns two parties with a confirmed pair.
func trusted(t testing.TB, ports, offer string) (alice, bob *party) {
	t.Helper()
	alice, bob = newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, ports, offer)
	alice.send(bob)
	bob.approve(alice)
	settle(alice, bob)
	confirm(alice, bob)
	return alice, bob
}

func wantKind(t testing.TB, events []Event, kinds ...EventKind) {
	t.Helper()
	if len(events) != len(kinds) {
		t.Fatalf("%d events %v, want %v", len(events), events, kinds)
	}
	for i, e := range events {
		if e.Kind != kinds[i] {
			t.Fatalf("event %d is %v (%v), want %v", i, e.Kind, e.Err, kinds[i])
		}
	}
}
