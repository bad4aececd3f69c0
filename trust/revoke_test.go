package trust

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

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
