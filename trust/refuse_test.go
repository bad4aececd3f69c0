package trust

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// A re-installed key whose clock is behind: its serial is not above the highest
// seen, so that only approve helps, and a replay is never granted by itself.
func TestLowerSerial(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	alice.wipe()
	alice.now = time.Date(1970, 1, 1, 0, 0, 5, 0, time.UTC)
	alice.ask(bob, "80", "7")
	wantKind(t, alice.send(bob), RequestPending)
	in := bob.Incoming()
	if len(in) != 1 || !in[0].Stale || !in[0].StateLost {
		t.Fatalf("%+v", in)
	}
	bob.approve(alice)
	settle(alice, bob)
	matches(alice, bob)
	// From the answer alice knows how high serials are.
	alice.ask(bob, "80", "7", func(o *RequestOptions) { o.Reason = "fresh" })
	wantKind(t, alice.send(bob), Renewed)
}

func TestNames(t *testing.T) {
	bob := newParty(t, "bob")
	twin := func(seed, name string) *party {
		p := newParty(t, seed)
		p.Close()
		p.name = name
		p.tweak = func(c *Config) { c.Name = name }
		p.open()
		return p
	}
	real, fake, odd := twin("one", "worker"), twin("two", "worker"), twin("three", "localhost")
	for _, p := range []*party{real, fake, odd} {
		p.ask(bob, "80", "7", func(o *RequestOptions) { o.Card = bob.card() })
		wantKind(t, p.send(bob), RequestPending)
	}
	names := func(err error, ps ...*party) bool {
		ok := errors.Is(err, ErrNameTaken)
		for _, p := range ps {
			ok = ok && strings.Contains(err.Error(), p.pub().String())
		}
		return ok
	}
	if _, err := bob.Approve(real.pub(), ApproveOptions{}); !names(err, real, fake) {
		t.Errorf("two requests with one name: %v", err)
	}
	if _, err := bob.Approve(real.pub(), ApproveOptions{As: "Real"}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Approve(fake.pub(), ApproveOptions{As: "real"}); !names(err, real, fake) {
		t.Errorf("the name of a peer: %v", err)
	}
	if p, err := bob.Approve(fake.pub(), ApproveOptions{}); err != nil || p.Name != "worker" {
		t.Errorf("%v, %q", err, p.Name)
	}
	if _, err := bob.Approve(odd.pub(), ApproveOptions{}); !errors.Is(err, ErrName) {
		t.Errorf("reserved name: %v", err)
	}
	if err := bob.Rename(real.pub(), "worker"); !names(err, real, fake) {
		t.Errorf("rename: %v", err)
	}
	if _, err := bob.tryAsk(newParty(t, "four"), "80", "7", func(o *RequestOptions) { o.As = "real" }); !errors.Is(err, ErrNameTaken) {
		t.Errorf("request: %v", err)
	}
	// A granter whose suggestion does not do gets a name that does.
	bob.send(real)
	carol := twin("five", "bob")
	real.ask(carol, "80", "7")
	real.send(carol)
	carol.approve(real)
	carol.send(real)
	if p, _ := real.Peer(carol.pub()); !strings.HasPrefix(p.Name, "peer-") {
		t.Errorf("second bob is called %q", p.Name)
	}
}

func TestAddressTaken(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	mallory := newParty(t, "mallory")
	bob.Close()
	bob.tweak = func(c *Config) {
		c.CheckCard = func(crypto.Card) ([6]byte, error) { return addrOf(alice.pub()), nil }
	}
	bob.open()
	mallory.ask(bob, "80", "7")
	events := mallory.send(bob)
	wantKind(t, events, Refused)
	if !errors.Is(events[0].Err, ErrAddressTaken) {
		t.Error(events[0].Err)
	}
	if _, err := bob.tryAsk(mallory, "80", "7", func(o *RequestOptions) { o.Addr = addrOf(alice.pub()) }); !errors.Is(err, ErrAddressTaken) {
		t.Error(err)
	}
}

func TestRefusedMail(t *testing.T) {
	alice, bob, carol := newParty(t, "alice"), newParty(t, "bob"), newParty(t, "carol")
	alice.ask(bob, "80", "7")
	mail := alice.mail(bob)
	before := bob.state
	bad := slices.Clone(mail[0].Sealed)
	bad[len(bad)-1] ^= 1
	signed, err := bob.seal.Open(mailInfo, mail[0].Sealed)
	if err != nil {
		t.Fatal(err)
	}
	forwarded, err := carol.seal.Public().Seal(mailInfo, signed) // a recipient passes it on
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		p      *party
		sealed []byte
	}{
		"empty": {bob, nil}, "damaged": {bob, bad}, "too long": {bob, make([]byte, MaxSealed+1)},
		"for another": {carol, mail[0].Sealed}, "passed on": {carol, forwarded},
	} {
		ev, err := c.p.Receive(c.sealed)
		if err != nil || ev.Kind != Refused || ev.Err == nil {
			t.Errorf("%s: %+v, %v", name, ev, err)
		}
	}
	// Grants that nobody asked for.
	for _, st := range []Statement{
		{Kind: KindGrant, Serial: 5, Offer: DefaultAsk},
		{Kind: KindGrant, Serial: 5, Offer: DefaultAsk, Parent: [32]byte{1}, Random: [32]byte{1}, Tunnel: testDH("x").Public(), Card: signCard(t, alice.key, alice.card())},
	} {
		wantKind(t, bob.take([]Mail{bob.forge(alice, st)}), Refused)
	}
	// The card must be the issuer's and its node ID must be right.
	st := Statement{Kind: KindRequest, Serial: 5, Ask: DefaultAsk, Random: [32]byte{1}, Tunnel: testDH("x").Public()}
	st.Card = signCard(t, carol.key, carol.card())
	wantKind(t, bob.take([]Mail{bob.forge(alice, st)}), Refused)
	card := alice.card()
	card.Counter = 666
	st.Card = signCard(t, alice.key, card)
	wantKind(t, bob.take([]Mail{bob.forge(alice, st)}), Refused)
	if !reflect.DeepEqual(bob.state, before) || len(bob.book) != 0 {
		t.Error("refused mail changed the state")
	}
}

// forge signs and seals any statement from another party.
func (p *party) forge(from *party, st Statement) Mail {
	p.t.Helper()
	st.Issuer, st.Subject = from.pub(), p.pub()
	signed, err := st.Sign(from.key)
	if err != nil {
		p.t.Fatal(err)
	}
	sealed, err := p.seal.Public().Seal(mailInfo, signed)
	if err != nil {
		p.t.Fatal(err)
	}
	return Mail{Sealed: sealed, Kind: st.Kind}
}

// A peer that uses up the serials harms nobody but itself.
func TestSerialsUsedUp(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	st := Statement{Kind: KindRequest, Serial: maxSerial - 1, Ask: DefaultAsk, Random: [32]byte{1}, Tunnel: testDH("x").Public(), Name: "alice",
		Card: signCard(t, alice.key, alice.card())}
	wantKind(t, bob.take([]Mail{bob.forge(alice, st)}), RequestPending)
	if _, err := bob.Approve(alice.pub(), ApproveOptions{}); err == nil {
		t.Error("approved without a serial")
	}
	if err := bob.Block(alice.pub()); err != nil {
		t.Error(err)
	}
	carol := newParty(t, "carol")
	carol.ask(bob, "80", "7")
	carol.send(bob)
	bob.approve(carol)
}

// A flood of keys that ask is bounded, and does not push out what matters.
func TestRequestFlood(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	alice.ask(bob, "80,443", "7")
	alice.send(bob)
	bob.limits = limits{pending: 10, strangers: 15}
	card := alice.card()
	for i := range 40 {
		key := crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "flood", i)))
		card.Key = key.Public()
		bob.now = bob.now.Add(time.Millisecond)
		st := Statement{Kind: KindRequest, Serial: 5, Issuer: key.Public(), Subject: bob.pub(), Ask: DefaultAsk, Random: [32]byte{1},
			Tunnel: testDH("x").Public(), Card: signCard(t, key, card)}
		signed, err := st.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := bob.seal.Public().Seal(mailInfo, signed)
		if err != nil {
			t.Fatal(err)
		}
		wantKind(t, bob.take([]Mail{{Sealed: sealed}}), RequestPending)
		if i%3 == 0 {
			if err := bob.Reject(key.Public()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(bob.book); n > 16 || n < 10 {
		t.Errorf("%d keys are remembered", n)
	}
	if n := len(bob.Incoming()); n > 11 || n < 8 || bob.Incoming()[0].Key != alice.pub() {
		t.Errorf("%d requests wait", n)
	}
	matches(alice, bob)
}
