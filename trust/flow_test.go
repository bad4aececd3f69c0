package trust

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
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

func TestRevoke(t *testing.T) {
	for _, side := range []string{"granter", "requester"} {
		alice, bob := newParty(t, "alice"), newParty(t, "bob")
		alice.ask(bob, "80", "7")
		request := alice.mail(bob)
		bob.take(request)
		bob.approve(alice)
		grant := bob.mail(alice)
		alice.take(grant)
		confirm(alice, bob)
		ports := scope(t, "7")
		bob.approve(alice, func(o *ApproveOptions) { o.Ports = &ports })
		terms := bob.mail(alice)

		x, y := bob, alice
		if side == "requester" {
			x, y = alice, bob
		}
		if err := x.Revoke(y.pub()); err != nil {
			t.Fatal(err)
		}
		if len(x.Peers()) != 0 {
			t.Fatal("still a peer")
		}
		notice := x.mail(y)
		if len(notice) != 1 || notice[0].Kind != KindRevoke || len(notice[0].Card.Servers) != 1 {
			t.Fatalf("%+v", notice)
		}
		x.reopen()
		// Nothing that was said before brings it back, on either side.
		wantKind(t, bob.take(request), map[string]EventKind{"granter": Refused, "requester": Duplicate}[side])
		bob.mail(alice) // the stored grant again
		wantKind(t, alice.take(terms), map[string]EventKind{"granter": Changed, "requester": Refused}[side])
		wantKind(t, y.take(notice), Revoked)
		wantKind(t, y.take(notice), Duplicate)
		wantKind(t, bob.take(request), Refused)
		wantKind(t, alice.take(grant), Refused)
		wantKind(t, alice.take(terms), Refused)
		alice.reopen()
		bob.reopen()
		if len(alice.Peers())+len(bob.Peers())+len(alice.Outbox())+len(bob.Outbox())+len(bob.Incoming()) != 0 {
			t.Fatalf("%s revoked: something came back", side)
		}
		if err := x.Revoke(y.pub()); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		// Trust can be made anew, and a late notice does not end that.
		alice.ask(bob, "80", "7")
		wantKind(t, alice.send(bob), RequestPending)
		bob.approve(alice)
		settle(alice, bob)
		matches(alice, bob)
		wantKind(t, y.take(notice), Duplicate)
		matches(alice, bob)
	}
}

// A revocation that arrives after a newer request and grant voids the old pair only.
func TestLateRevocation(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	if err := alice.Revoke(bob.pub()); err != nil {
		t.Fatal(err)
	}
	notice := alice.mail(bob)
	alice.ask(bob, "443", "7")
	wantKind(t, alice.send(bob), RequestPending)
	bob.approve(alice)
	settle(alice, bob)
	matches(alice, bob)
	wantKind(t, bob.take(notice), Revoked)
	matches(alice, bob)
	if p, _ := bob.Peer(alice.pub()); p.Current != nil || p.In.String() != "443" {
		t.Fatalf("%+v", p)
	}
}

// Both directions, whatever the clocks say: bob's is twenty years ahead.
func TestRevokeAcrossClocks(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	bob.now = bob.now.AddDate(20, 0, 0)
	alice.ask(bob, "80", "7")
	alice.send(bob)
	bob.approve(alice)
	grant := bob.mail(alice)
	if err := alice.Revoke(bob.pub()); err != nil { // before the grant arrives
		t.Fatal(err)
	}
	wantKind(t, alice.take(grant), Refused)
	wantKind(t, alice.send(bob), Revoked)
	if len(alice.Peers())+len(bob.Peers()) != 0 {
		t.Fatal("trust is left")
	}
}

func TestRejectAndBlock(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, "80", "7")
	request := alice.mail(bob)
	bob.take(request)
	if err := bob.Reject(alice.pub()); err != nil {
		t.Fatal(err)
	}
	bob.reopen()
	wantKind(t, bob.take(request), Duplicate)
	if len(bob.Incoming())+len(bob.Outbox()) != 0 {
		t.Fatal("a rejected request is shown again")
	}
	if err := bob.Reject(alice.pub()); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	alice.ask(bob, "443", "7")
	wantKind(t, alice.send(bob), RequestPending)

	if err := bob.Block(alice.pub()); err != nil {
		t.Fatal(err)
	}
	bob.reopen()
	alice.ask(bob, "22", "7")
	events := alice.send(bob)
	wantKind(t, events, Refused)
	if !errors.Is(events[0].Err, ErrBlocked) || len(bob.Incoming()) != 0 || !slices.Equal(bob.Blocked(), []crypto.PublicKey{alice.pub()}) {
		t.Fatalf("%+v", events)
	}
	if _, err := bob.tryAsk(alice, "80", "7"); !errors.Is(err, ErrBlocked) {
		t.Error(err)
	}
	if _, err := bob.Approve(alice.pub(), ApproveOptions{}); !errors.Is(err, ErrBlocked) {
		t.Error(err)
	}
	if err := bob.Unblock(alice.pub()); err != nil {
		t.Fatal(err)
	}
	bob.reopen()
	alice.now = alice.now.Add(time.Second)
	alice.ask(bob, "23", "7")
	wantKind(t, alice.send(bob), RequestPending)
}

func TestForget(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	if err := bob.Forget(alice.pub()); !errors.Is(err, ErrActive) {
		t.Fatal(err)
	}
	ttl := time.Minute
	bob.approve(alice, func(o *ApproveOptions) { o.TTL = &ttl })
	bob.now, bob.boot = bob.now.Add(time.Hour), bob.boot+time.Hour
	if p, _ := bob.Peer(alice.pub()); p.State != Expired {
		t.Fatal("not expired")
	}
	if err := bob.Forget(alice.pub()); err != nil {
		t.Fatal(err)
	}
	bob.reopen()
	if len(bob.Peers())+len(bob.Outbox()) != 0 || bob.book[alice.pub()].High == 0 {
		t.Fatal("forgot too little or too much")
	}
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

func TestExpiry(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	hour := func(o *RequestOptions) { o.TTL = time.Hour }
	alice.now = alice.now.Add(-20 * time.Hour) // a clock that is behind; its request seems to have expired
	alice.ask(bob, "80", "7", hour)
	wantKind(t, alice.send(bob), RequestPending)
	if _, err := bob.Approve(alice.pub(), ApproveOptions{}); !errors.Is(err, ErrExpired) {
		t.Fatalf("approve of an expired request: %v", err)
	}
	ttl := time.Hour
	if p := bob.approve(alice, func(o *ApproveOptions) { o.TTL = &ttl }); p.State != Active {
		t.Fatalf("%+v", p)
	}
	wantKind(t, bob.send(alice), Granted)
	matches(alice, bob)
	if n := bob.NextExpiry(); !n.Equal(epoch.Add(time.Hour)) {
		t.Error(n)
	}
	bob.now = epoch.Add(time.Hour)
	if p, _ := bob.Peer(alice.pub()); p.State != Expired { // exactly, by the issuer's own firewall
		t.Error("still active")
	}
	if bob.Peers()[0].State != Expired {
		t.Error("the list says active")
	}

	// Beyond the grace nothing is taken.
	alice, bob = newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, "80", "7", hour)
	request := alice.mail(bob)
	bob.now = bob.now.Add(26 * time.Hour)
	events := bob.take(request)
	wantKind(t, events, Refused)
	if !errors.Is(events[0].Err, ErrExpired) {
		t.Error(events[0].Err)
	}
	bob.now = epoch
	wantKind(t, bob.take(request), RequestPending)
	bob.approve(alice)
	grant := bob.mail(alice)
	alice.now = alice.now.Add(26 * time.Hour)
	events = alice.take(grant)
	wantKind(t, events, Refused)
	if !errors.Is(events[0].Err, ErrExpired) || len(alice.Peers()) != 0 {
		t.Error(events[0].Err)
	}
	alice.now = epoch.Add(24 * time.Hour) // off by a day, within grace; but our own word has ended here
	wantKind(t, alice.take(grant), Granted)
	if p, _ := alice.Peer(bob.pub()); p.State != Expired {
		t.Error("active")
	}
}

// Setting the clock back revives nothing, also over restarts; a jump into the
// future ends nothing for good.
func TestTimeFloor(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	alice.ask(bob, "80", "7", func(o *RequestOptions) { o.TTL = 24 * time.Hour })
	alice.send(bob)
	bob.now, bob.boot = bob.now.Add(time.Minute), bob.boot+time.Minute
	bob.approve(alice)
	bob.send(alice)
	if got := bob.Now(); !got.Equal(bob.now) {
		t.Fatalf("now %v", got)
	}
	state := func() PeerState { p, _ := bob.Peer(alice.pub()); return p.State }

	bob.now = epoch.AddDate(-30, 0, 0)
	if got := bob.Now(); !got.Equal(epoch) { // two clocks said so: the request's and ours
		t.Fatalf("floor %v", got)
	}
	bob.boot += 25 * time.Hour
	if state() != Expired {
		t.Fatal("the clock went back and trust came back")
	}
	bob.reopen()
	if state() != Expired {
		t.Fatal("so did the restart")
	}
	if err := bob.PutMeta("x", []byte("y")); err != nil { // any change writes the floor
		t.Fatal(err)
	}
	bob.boot = 5 * time.Second // machine booted again
	bob.reopen()
	if state() != Expired || bob.Now().Before(epoch.Add(25*time.Hour)) {
		t.Fatalf("so did the boot: %v", bob.Now())
	}

	// A jump to 2046 while statements go back and forth leaves no trace.
	alice, bob = trusted(t, "80", "7")
	for _, p := range []*party{alice, bob} {
		other := map[*party]*party{alice: bob, bob: alice}[p]
		p.now = p.now.AddDate(20, 0, 0)
		p.ask(other, "80,443", "7,80", func(o *RequestOptions) { o.Reason = p.name })
		p.send(other)
		other.approve(p)
		settle(alice, bob)
		p.now = epoch.Add(time.Hour)
		if got := p.Now(); got.After(p.now) {
			t.Fatalf("%s: floor at %v after a jump of its clock", p.name, got)
		}
		if got := other.Now(); got.After(epoch.Add(2 * time.Hour)) {
			t.Fatalf("%s: floor at %v after a jump of the other's clock", other.name, got)
		}
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
	// Revocations and grants that nobody asked for.
	for _, st := range []Statement{
		{Kind: KindRevoke, Serial: 5},
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
	if bob.state != before || len(bob.book) != 0 {
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
