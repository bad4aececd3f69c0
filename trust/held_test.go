package trust

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// meets is what both sides tell each other in a session. It returns how many of them say
// their terms again.
func meets(a, b *party) (said int) {
	a.t.Helper()
	for _, x := range [][2]*party{{a, b}, {b, a}} {
		held, ok := x[1].Holds(x[0].pub())
		if !ok {
			a.t.Fatalf("%s holds no terms of %s", x[1].name, x[0].name)
		}
		again, err := x[0].Remind(x[1].pub(), held)
		if err != nil {
			a.t.Fatal(err)
		}
		if again {
			said++
		}
	}
	return said
}

// mirrors fails unless each side believes in what the other one lets it reach.
func mirrors(a, b *party, in, out string) {
	a.t.Helper()
	p, _ := a.Peer(b.pub())
	q, _ := b.Peer(a.pub())
	if p.In.String() != in || p.Out.String() != out || q.In.String() != out || q.Out.String() != in || !p.Expires.Equal(q.Expires) {
		a.t.Fatalf("%s has in %s, out %s, until %v; %s has in %s, out %s, until %v", a.name, p.In, p.Out, p.Expires, b.name, q.In, q.Out, q.Expires)
	}
}

// A change of terms is lost with the server that had it: the next session finds out, and
// the same statement goes again.
func TestTermsLost(t *testing.T) {
	alice, bob := trusted(t, "80,443", "7")
	if n := meets(alice, bob); n != 0 {
		t.Fatalf("%d of two that agree speak", n)
	}
	ports, ttl := scope(t, "80"), 48*time.Hour
	bob.approve(alice, func(o *ApproveOptions) { o.Ports, o.TTL = &ports, &ttl })
	if n := meets(alice, bob); n != 0 || len(bob.Outbox()) != 1 {
		t.Fatalf("%d speak, %d mails wait: it is on its way", n, len(bob.Outbox()))
	}
	lost := bob.mail(alice)
	alice.reopen()
	bob.reopen()
	if n := meets(alice, bob); n != 1 || len(bob.Outbox()) != 1 {
		t.Fatalf("%d speak, %d mails wait", n, len(bob.Outbox()))
	}
	wantKind(t, bob.send(alice), Changed)
	mirrors(alice, bob, "7", "80")
	wantKind(t, alice.take(lost), Duplicate)
	if n := meets(alice, bob) + len(alice.Outbox()) + len(bob.Outbox()); n != 0 {
		t.Fatalf("%d words after they agreed", n)
	}
	matches(alice, bob)
}

// The grant of a renewal is lost, and what it would have allowed with it: a session under
// the old secrets brings both, and nobody has to ask again.
func TestGrantLost(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	alice.ask(bob, "80,443", "7,22")
	wantKind(t, alice.send(bob), RequestPending)
	bob.approve(alice)
	bob.mail(alice)
	next := bob.newest(alice).ID
	if n := meets(alice, bob); n != 2 || len(bob.Outbox()) != 2 || len(alice.Outbox()) != 1 {
		t.Fatalf("%d speak, %d and %d mails wait", n, len(alice.Outbox()), len(bob.Outbox()))
	}
	wantKind(t, alice.send(bob), Duplicate)
	wantKind(t, bob.send(alice), Renewed, Changed)
	matches(alice, bob)
	mirrors(alice, bob, "7,22", "80,443")
	if alice.newest(bob).ID != next || len(alice.Outgoing()) != 0 {
		t.Fatal("the answer is not the one that was given")
	}
	if n := meets(alice, bob); n != 0 {
		t.Fatalf("%d of two that agree speak", n)
	}
}

// A key is installed again while its clock is behind. What the peer holds of the forgotten
// state has a higher serial than what it is offered now, and counts, until they meet.
func TestTermsOfForgottenState(t *testing.T) {
	alice, bob := trusted(t, "80", "7,443")
	alice.wipe()
	alice.now = epoch.Add(-48 * time.Hour)
	alice.ask(bob, "80", "22")
	wantKind(t, alice.send(bob), RequestPending)
	bob.approve(alice)
	settle(alice, bob)
	confirm(alice, bob)
	if p, _ := bob.Peer(alice.pub()); p.Out.String() != "7,443" {
		t.Fatalf("bob believes in %s", p.Out)
	}
	if n := meets(alice, bob); n != 1 {
		t.Fatalf("%d speak", n)
	}
	settle(alice, bob)
	mirrors(alice, bob, "22", "80")
	if n := meets(alice, bob); n != 0 {
		t.Fatalf("%d of two that agree speak", n)
	}
}

// Two different statements with one serial, as a restored backup can make them, are told
// apart. What a stranger, a suspended or a lying peer says changes nothing.
func TestRemind(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	held, _ := alice.Holds(bob.pub())
	if !bob.InForce(alice.pub(), held) {
		t.Fatal("alice holds other terms")
	}
	other := held
	other[HeldSize-1]++
	if said, err := bob.Remind(alice.pub(), other); !said || err != nil || bob.InForce(alice.pub(), held) {
		t.Fatal("a hash that differs is taken for the same", err)
	}
	wantKind(t, bob.send(alice), Changed)
	mirrors(alice, bob, "7", "80")

	head := bob.Head()
	for what, try := range map[string]struct {
		key  crypto.PublicKey
		held Held
	}{"a stranger": {newParty(t, "carol").pub(), held}, "no serial": {alice.pub(), Held{0xff}}} {
		if said, err := bob.Remind(try.key, try.held); said || err != nil || bob.Head() != head || len(bob.Outbox()) != 0 {
			t.Errorf("%s: %v, %v", what, said, err)
		}
	}
	shown := func() []byte { // a head of bob's that this state does not know
		back := bob.backup()
		defer back()
		ports := scope(t, "22")
		bob.approve(alice, func(o *ApproveOptions) { o.Ports = &ports })
		return bob.show()
	}()
	if !bob.seen(shown) {
		t.Fatal("not caught")
	}
	if said, err := bob.Remind(alice.pub(), held); said || err != nil {
		t.Errorf("suspended: %v, %v", said, err)
	}
}

// Bob takes his requests back, and the word of it is lost. Alice grants both in vain, while
// bob grants hers: of the three slots that she has made the one that he has, too, stays.
func TestGrantedInVain(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	bob.ask(alice, "80", "7")
	first := bob.mail(alice)
	bob.ask(alice, "443", "7")
	second := bob.mail(alice)
	if err := bob.Revoke(alice.pub()); err != nil {
		t.Fatal(err)
	}
	bob.mail(alice)
	wantKind(t, alice.take(first), RequestPending)
	alice.approve(bob)
	vain := alice.mail(bob)
	alice.now, bob.now = alice.now.Add(time.Minute), bob.now.Add(time.Minute)
	alice.ask(bob, "80", "22")
	wantKind(t, alice.send(bob), RequestPending)
	bob.approve(alice)
	wantKind(t, alice.take(second), RequestPending)
	alice.now = alice.now.Add(time.Minute)
	alice.approve(bob)
	wantKind(t, bob.take(append(vain, alice.mail(bob)...)), Refused, Refused)
	bob.send(alice)
	p, _ := alice.Peer(bob.pub())
	if p.Current == nil || slotsMatch(p.Current, bob.newest(alice)) != nil {
		t.Fatal("no slot is left that both have")
	}
	if err := errors.Join(alice.Confirmed(bob.pub(), p.Current.ID), bob.Confirmed(alice.pub(), p.Current.ID)); err != nil {
		t.Fatal(err)
	}
	meets(alice, bob)
	settle(alice, bob)
	mirrors(alice, bob, "443", "80")
}

// A request is taken back, and the word of it arrives first: what comes late is void. What
// is remembered for that is bounded, and drives out no request.
func TestRevocationOvertakesRequest(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, "80", "7")
	request := alice.mail(bob)
	if err := alice.Revoke(bob.pub()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, alice.send(bob), Revoked)
	for range 2 {
		events := bob.take(request)
		if wantKind(t, events, Refused); !errors.Is(events[0].Err, ErrRevoked) || len(bob.Incoming()) != 0 {
			t.Fatalf("%+v", events)
		}
		bob.reopen()
	}
	alice.ask(bob, "443", "7")
	wantKind(t, alice.send(bob), RequestPending)

	bob.limits = limits{pending: 10, strangers: 15}
	for i := range 40 {
		key := crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "flood", i)))
		st := Statement{Kind: KindRevoke, Serial: 5, Issuer: key.Public(), Subject: bob.pub()}
		signed, err := st.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := bob.seal.Public().Seal(mailInfo, signed)
		if err != nil {
			t.Fatal(err)
		}
		bob.now = bob.now.Add(time.Millisecond)
		wantKind(t, bob.take([]Mail{{Sealed: sealed}}), Revoked)
	}
	if n := len(bob.book); n > 12 || len(bob.Incoming()) != 1 {
		t.Errorf("%d keys are remembered, %d requests wait", n, len(bob.Incoming()))
	}
	bob.approve(alice)
	settle(alice, bob)
	matches(alice, bob)
	if err := alice.Revoke(bob.pub()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, alice.send(bob), Revoked)
	if r := bob.book[alice.pub()]; r.stranger() {
		t.Error("the revocation of a peer can be forgotten")
	}
}
