package trust

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestRequestAndGrant(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	p := alice.ask(bob, "80,8080/tcp", "7")
	if p.Key != bob.pub() || len(alice.Outgoing()) != 1 || len(alice.Peers()) != 0 {
		t.Fatalf("after request: %+v", p)
	}
	wantKind(t, alice.send(bob), RequestPending)
	in := bob.Incoming()
	if len(in) != 1 || in[0].Name != "alice" || in[0].Ask.String() != "80,8080/tcp" || in[0].Reason != "because" || in[0].Addr != addrOf(alice.pub()) {
		t.Fatalf("incoming: %+v", in)
	}
	peer := bob.approve(alice)
	if peer.Name != "alice" || peer.In.String() != "80,8080/tcp" || peer.Out.String() != "7" || peer.State != Active || peer.Next == nil {
		t.Fatalf("bob's peer: %+v", peer)
	}
	wantKind(t, bob.send(alice), Granted)
	peer, ok := alice.Lookup(bob.pub().Fingerprint())
	if !ok || peer.Name != "bob" || peer.In.String() != "7" || peer.Out.String() != "80,8080/tcp" || peer.State != Active || len(alice.Outgoing()) != 0 {
		t.Fatalf("alice's peer: %+v", peer)
	}
	matches(alice, bob)
	alice.reopen()
	bob.reopen()
	matches(alice, bob)
	confirm(alice, bob)
	if p, _ := alice.Peer(bob.pub()); p.Next != nil || p.Current == nil {
		t.Fatal("not confirmed")
	}
	if err := alice.Confirmed(bob.pub(), [32]byte{1}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if len(alice.Outbox())+len(bob.Outbox()) != 0 {
		t.Fatal("mail is left")
	}
}

// A statement that comes again gets the stored answer, never new secrets.
func TestRedelivery(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	first := alice.ask(bob, "80", "7")
	request := alice.mail(bob)
	wantKind(t, bob.take(request), RequestPending)
	wantKind(t, bob.take(request), Duplicate)

	// Unanswered and identical: the stored one is sent again.
	alice.reopen()
	if again := alice.ask(bob, "80", "7"); again.ID != first.ID {
		t.Fatal("a repeated request is a new one")
	}
	if again := alice.ask(bob, "80", "7"); again.ID != first.ID || len(alice.Outbox()) != 1 {
		t.Fatal("a request that waits in the outbox was doubled")
	}
	wantKind(t, alice.send(bob), Duplicate)

	bob.approve(alice)
	slot := bob.newest(alice).ID
	lost := bob.mail(alice) // the grant gets lost, or the granter was down
	bob.reopen()
	wantKind(t, bob.take(request), Duplicate)
	wantKind(t, bob.take(request), Duplicate)
	if len(bob.Outbox()) != 1 {
		t.Fatalf("%d mails for one answer", len(bob.Outbox()))
	}
	wantKind(t, bob.send(alice), Granted)
	wantKind(t, alice.take(lost), Duplicate) // it was only late
	if alice.newest(bob).ID != slot || bob.newest(alice).ID != slot {
		t.Fatal("repetition made new secrets")
	}
	matches(alice, bob)
	if bob.cards != 1 || alice.cards != 0 {
		t.Errorf("%d and %d card checks, want 1 and 0", bob.cards, alice.cards)
	}
}

func TestChangedRequest(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	a := alice.ask(bob, "80", "7")
	older := alice.mail(bob)
	b := alice.ask(bob, "80,443", "7")
	if a.ID == b.ID || len(alice.Outgoing()) != 1 || len(alice.Outbox()) != 1 {
		t.Fatal("a changed request does not take the place of the first")
	}
	alice.send(bob)
	wantKind(t, bob.take(older), Duplicate) // overtaken: kept out
	in := bob.Incoming()
	if len(in) != 1 || in[0].Ask.String() != "80,443" || in[0].Stale {
		t.Fatalf("%+v", in)
	}
}

// sorted returns two parties, the one with the lower key first.
func sorted(a, b *party) (low, high *party) {
	if a.pub().Compare(b.pub()) < 0 {
		return a, b
	}
	return b, a
}

func TestCrossingRequests(t *testing.T) {
	low, high := sorted(newParty(t, "alice"), newParty(t, "bob"))
	low.ask(high, "7", "7")
	high.ask(low, "7", "7")
	fromLow, fromHigh := low.mail(high), high.mail(low)
	wantKind(t, low.take(fromHigh), RequestPending) // the lower key's stands
	if in := low.Incoming(); len(in) != 1 || !in[0].Crossing {
		t.Fatalf("%+v", in)
	}
	wantKind(t, high.take(fromLow), Granted) // asked is within offered: at once
	wantKind(t, high.send(low), Granted)
	settle(low, high)
	matches(low, high)
	for _, p := range []*party{low, high} {
		if len(p.Incoming())+len(p.Outgoing()) != 0 {
			t.Errorf("%s still waits: %+v %+v", p.name, p.Incoming(), p.Outgoing())
		}
	}
}

// Beyond what is offered a person decides; if both do, at the same time, the
// two grants leave both sides with the same newest slot.
func TestCrossingGrants(t *testing.T) {
	for order := range 2 {
		low, high := sorted(newParty(t, "alice"), newParty(t, "bob"))
		low.ask(high, "80", "7")
		high.ask(low, "443", "7")
		fromLow, fromHigh := low.mail(high), high.mail(low)
		wantKind(t, low.take(fromHigh), RequestPending)
		wantKind(t, high.take(fromLow), RequestPending)
		if order == 0 {
			high.now = high.now.Add(time.Second)
		} else {
			low.now = low.now.Add(time.Second)
		}
		low.approve(high)
		high.approve(low)
		settle(low, high)
		matches(low, high)
		x, _ := low.Peer(high.pub())
		y, _ := high.Peer(low.pub())
		if x.Current == nil || y.Current == nil || x.Current.ID != y.Current.ID {
			t.Error("the older slots differ")
		}
		if x.In.String() != "443" || x.Out.String() != "80" || y.In.String() != "80" || y.Out.String() != "443" {
			t.Errorf("low has %s in %s out, high %s in %s out", x.In, x.Out, y.In, y.Out)
		}
		confirm(low, high)
		if x, _ := low.Peer(high.pub()); x.Next != nil || len(low.Outgoing())+len(high.Outgoing()) != 0 {
			t.Error("something is left over")
		}
	}
}

// Asking a key whose request waits grants that request, if it is what was offered.
func TestRequestMeetsWaitingRequest(t *testing.T) {
	for _, c := range []struct {
		ask, offer   string // of the second, the first asks 80 and offers 7
		fromLow      bool   // the second is the lower key
		granted, new bool
	}{
		{"7", "80", true, true, false},
		{"7", "80", false, true, false},
		{"443", "80", true, false, true},
		{"443", "80", false, true, true},
		{"7", "7", true, false, true},
		{"7", "7", false, false, true},
	} {
		low, high := sorted(newParty(t, "alice"), newParty(t, "bob"))
		first, second := low, high
		if c.fromLow {
			first, second = high, low
		}
		first.ask(second, "80", "7")
		first.send(second)
		p := second.ask(first, c.ask, c.offer)
		if p.Granted != c.granted || (len(second.Outgoing()) == 1) != c.new {
			t.Errorf("%+v: granted %v, %d requests", c, p.Granted, len(second.Outgoing()))
		}
		settle(first, second)
		if c.granted {
			matches(first, second)
		}
	}
}

func TestRenewal(t *testing.T) {
	alice, bob := trusted(t, "80,443", "7")
	old := bob.newest(alice).ID

	// Nothing new asked: fresh secrets at once, the old slot lives on.
	alice.now, bob.now = alice.now.Add(time.Hour), bob.now.Add(time.Hour)
	alice.ask(bob, "80,443", "7")
	wantKind(t, alice.send(bob), Renewed)
	if p, _ := bob.Peer(alice.pub()); p.Current == nil || p.Current.ID != old || p.Next == nil {
		t.Fatalf("%+v", p)
	}
	wantKind(t, bob.send(alice), Renewed)
	matches(alice, bob)
	if p, _ := alice.Peer(bob.pub()); p.Current.ID != old {
		t.Fatal("the old slot is gone before the new one is confirmed")
	}

	// More asked: a person decides, and trust goes on meanwhile.
	alice.ask(bob, "80,443,8080", "7")
	wantKind(t, alice.send(bob), RequestPending)
	if in := bob.Incoming(); !in[0].Renewal || in[0].StateLost {
		t.Fatalf("%+v", in)
	}
	if p, _ := bob.Peer(alice.pub()); p.In.String() != "80,443" {
		t.Fatal("a request changed the scope")
	}
	if p := bob.approve(alice); p.In.String() != "80,443,8080" || p.Name != "alice" {
		t.Fatalf("%+v", p)
	}
	settle(alice, bob)
	matches(alice, bob)
	confirm(alice, bob)
	if p, _ := bob.Peer(alice.pub()); p.Current == nil || p.Next != nil {
		t.Fatal("slots are left over")
	}
}

// A renewal whose grant is lost leaves the slot that the peer is known to hold.
func TestRenewalsOverlap(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	for i := range 3 {
		alice.ask(bob, "80", "7", func(o *RequestOptions) { o.Reason = fmt.Sprint("again ", i) })
		wantKind(t, alice.send(bob), Renewed)
		bob.mail(alice) // lost
	}
	a, _ := alice.Peer(bob.pub())
	b, _ := bob.Peer(alice.pub())
	if b.Current == nil || a.Current == nil || a.Current.ID != b.Current.ID {
		t.Fatal("no slot is common")
	}
	alice.ask(bob, "80", "7", func(o *RequestOptions) { o.Reason = "again 2" })
	settle(alice, bob) // the stored grant comes again
	matches(alice, bob)
}

func TestNarrow(t *testing.T) {
	alice, bob := trusted(t, "80,443", "7,22")
	slot := bob.newest(alice).ID
	ports, ttl := scope(t, "80"), time.Hour
	peer := bob.approve(alice, func(o *ApproveOptions) { o.Ports, o.TTL = &ports, &ttl })
	if peer.In.String() != "80" || !peer.Expires.Equal(epoch.Add(time.Hour)) || bob.newest(alice).ID != slot {
		t.Fatalf("%+v", peer)
	}
	first := bob.mail(alice)
	none := Scope(nil)
	bob.approve(alice, func(o *ApproveOptions) { o.Ports = &none })
	wantKind(t, bob.send(alice), Changed)
	wantKind(t, alice.take(first), Duplicate) // the later word counts
	if p, _ := alice.Peer(bob.pub()); p.Out.String() != "" || p.In.String() != "7,22" || !p.Expires.Equal(epoch.Add(time.Hour)) {
		t.Fatalf("%+v", p)
	}
	// The side that asked can narrow what it offered, too.
	ports = scope(t, "7")
	alice.approve(bob, func(o *ApproveOptions) { o.Ports = &ports })
	wantKind(t, alice.send(bob), Changed)
	if p, _ := bob.Peer(alice.pub()); p.Out.String() != "7" {
		t.Fatalf("%+v", p)
	}
	if err := bob.Rename(alice.pub(), "Worker"); err != nil {
		t.Fatal(err)
	}
	if p := bob.approve(alice, func(o *ApproveOptions) { o.As = "helper" }); p.Name != "helper" || len(bob.Outbox()) != 0 {
		t.Fatalf("%+v", p)
	}
	if _, err := bob.Approve(alice.pub(), ApproveOptions{All: true}); !errors.Is(err, ErrScope) {
		t.Error("all ports without the other side's word:", err)
	}
}

// Terms that overtake the grant they change are kept for it.
func TestTermsOvertakeGrant(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, "80,443", "7")
	alice.send(bob)
	bob.approve(alice)
	grant := bob.mail(alice)
	ports := scope(t, "80")
	bob.approve(alice, func(o *ApproveOptions) { o.Ports = &ports })
	wantKind(t, bob.send(alice), Changed)
	alice.reopen()
	wantKind(t, alice.take(grant), Granted)
	if p, _ := alice.Peer(bob.pub()); p.Out.String() != "80" {
		t.Fatalf("%+v", p)
	}
	matches(alice, bob)
}

func TestScopeOfGrant(t *testing.T) {
	some, all := scope(t, "443"), AllPorts
	for _, c := range []struct {
		name, ask string
		o         ApproveOptions
		want      string
		err       error
	}{
		{"as asked", "80", ApproveOptions{}, "80", nil},
		{"narrowed", "80,443", ApproveOptions{Ports: &some}, "443", nil},
		{"all, not spelled out", "all", ApproveOptions{}, "", ErrScope},
		{"all", "all", ApproveOptions{All: true}, "all", nil},
		{"all as ports", "all", ApproveOptions{Ports: &all}, "all", nil},
		{"all asked, some granted", "all", ApproveOptions{Ports: &some}, "443", nil},
		{"all, not asked", "80", ApproveOptions{All: true}, "", ErrScope},
		{"all as ports, not asked", "80", ApproveOptions{Ports: &all}, "", ErrScope},
	} {
		alice, bob := newParty(t, "alice"), newParty(t, "bob")
		alice.ask(bob, c.ask, "7")
		alice.send(bob)
		p, err := bob.Approve(alice.pub(), c.o)
		if !errors.Is(err, c.err) || p.In.String() != c.want {
			t.Errorf("%s: %q, %v", c.name, p.In, err)
		}
	}
}

func TestLostStore(t *testing.T) {
	alice, bob := trusted(t, "80", "7")

	// The requester lost it: known key, state lost; only a person grants again.
	alice.wipe()
	alice.now = alice.now.Add(time.Minute)
	alice.ask(bob, "80", "7")
	wantKind(t, alice.send(bob), RequestPending)
	in := bob.Incoming()
	if len(in) != 1 || !in[0].StateLost || in[0].Stale {
		t.Fatalf("%+v", in)
	}
	if p, _ := bob.Peer(alice.pub()); !p.StateLost || p.State != Active {
		t.Fatalf("%+v", p)
	}
	old := bob.newest(alice).ID
	if p := bob.approve(alice); p.StateLost || p.Current.ID != old || p.Next.ID == old || p.Name != "alice" {
		t.Fatalf("%+v", p)
	}
	settle(alice, bob)
	matches(alice, bob)
	confirm(alice, bob)

	// The granter lost it: to it, the requester is a stranger; to the
	// requester it is a renewal.
	bob.wipe()
	bob.now = epoch // and its clock is behind
	alice.ask(bob, "80", "7")
	wantKind(t, alice.send(bob), RequestPending)
	if in := bob.Incoming(); in[0].StateLost || in[0].Renewal {
		t.Fatalf("%+v", in)
	}
	bob.approve(alice)
	wantKind(t, bob.send(alice), Renewed)
	matches(alice, bob)
}

func TestUpdateCard(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	card := alice.card()
	card.Servers[0].Host, card.Serial = "new.example", 5
	if err := bob.UpdateCard(card); err != nil {
		t.Fatal(err)
	}
	old := alice.card()
	if err := bob.UpdateCard(old); err != nil { // lower: ignored
		t.Fatal(err)
	}
	bob.reopen()
	if p, _ := bob.Peer(alice.pub()); p.Card.Servers[0].Host != "new.example" || p.Card.Seal != card.Seal || p.Card.Serial != 5 {
		t.Fatalf("%+v", p.Card.Servers)
	}
	card.Counter, card.Serial = 8, 6
	if err := bob.UpdateCard(card); err != nil || bob.cards != 2 {
		t.Fatal(err, bob.cards)
	}
	card.Counter, card.Serial = 666, 7
	if err := bob.UpdateCard(card); err == nil {
		t.Fatal("a card with a wrong counter is taken")
	}
}
