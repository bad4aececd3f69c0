package trust

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// fleetOf is how many agents bring the invite in TestFleet, of which two have the
// same name.
const fleetOf = 4

func TestFleet(t *testing.T) {
	bob := newParty(t, "bob")
	_, inv := bob.invite(func(o *InviteOptions) { o.Uses = fleetOf })
	names := []string{"alice", "carol", "dave", "erin", "frank"}
	var parties []*party
	for i, name := range names {
		p := newParty(t, name)
		if i == 1 {
			p.name = names[0]
			p.reopen()
		}
		parties = append(parties, p)
		p.ask(bob, "80", "7", with(inv))
		if i == 2 {
			bob.reopen()
		}
		if i == fleetOf {
			events := p.send(bob)
			wantKind(t, events, InviteReused)
			if !errors.Is(events[0].Err, ErrInviteUsed) || len(bob.Peers()) != fleetOf {
				t.Errorf("%v, %d peers", events[0].Err, len(bob.Peers()))
			}
			continue
		}
		wantKind(t, p.send(bob), InviteUsed)
		wantKind(t, bob.send(p), Granted)
		matches(p, bob)
	}
	if p, ok := bob.Peer(parties[1].pub()); !ok || p.Name != "alice-2" {
		t.Errorf("the second alice is called %q", p.Name)
	}

	// One key has one use.
	first := parties[0]
	if err := bob.Revoke(first.pub()); err != nil {
		t.Fatal(err)
	}
	bob.send(first)
	bob.reopen()
	list := bob.Invites()
	if len(list) != 1 || list[0].ID != inv.ID() || list[0].Uses != fleetOf || len(list[0].By) != fleetOf || list[0].By[0].Trusted || !list[0].By[1].Trusted || list[0].By[1].Name != "alice-2" {
		t.Fatalf("%+v", list)
	}
	first.ask(bob, "80", "7", with(inv))
	wantKind(t, first.send(bob), InviteReused)
	if _, err := bob.Approve(first.pub(), ApproveOptions{}); err != nil {
		t.Fatal(err)
	}
	// Who was approved by hand since does not rest on the invite.
	parties[3].ask(bob, "443", "7")
	parties[3].send(bob)
	if _, err := bob.Approve(parties[3].pub(), ApproveOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []crypto.PublicKey{parties[1].pub(), parties[2].pub()}
	slices.SortFunc(want, crypto.PublicKey.Compare)
	for range 2 {
		keys, err := bob.EndInvite(inv.ID()[:6])
		if err != nil || !slices.Equal(keys, want) {
			t.Fatalf("%v, %v; want %v", keys, err, want)
		}
		bob.reopen()
	}
	if _, err := bob.EndInvite("zz"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestEndedInvite(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	_, inv := bob.invite(func(o *InviteOptions) { o.Uses, o.Name = 2, "worker" })
	if _, err := bob.EndInvite(inv.ID()); err != nil {
		t.Fatal(err)
	}
	alice.ask(bob, "80", "7", with(inv))
	events := alice.send(bob)
	if !errors.Is(events[0].Err, ErrInviteExpired) || len(bob.Peers()) > 0 {
		t.Errorf("%+v", events[0])
	}
}

// What a fleet is called, whatever its members suggest.
func TestFleetNames(t *testing.T) {
	bob := newParty(t, "bob")
	long := "a234567890123456789012345678901x"
	for _, c := range []struct{ name, suggested, want string }{
		{"worker", "alice", "worker-1"},
		{"", "carol", "carol"},
		{long, "dave", long[:30] + "-1"},
		{"", "local host", "peer-"},
	} {
		_, inv := bob.invite(func(o *InviteOptions) { o.Uses, o.Name = 3, c.name })
		p := newParty(t, fmt.Sprintf("p%d", len(bob.Peers())))
		p.name = c.suggested
		p.reopen()
		p.ask(bob, "80", "7", with(inv))
		wantKind(t, p.send(bob), InviteUsed)
		if peer, ok := bob.Peer(p.pub()); !ok || !(peer.Name == c.want || c.want == "peer-" && len(peer.Name) == 13) {
			t.Errorf("%q who suggests %q is called %q, want %q", c.name, c.suggested, peer.Name, c.want)
		}
	}
	for _, o := range []InviteOptions{
		{Uses: -1}, {Uses: MaxInviteUses + 1}, {Uses: 2, For: new(crypto.Fingerprint)},
	} {
		o.Contact, o.Ports, o.TTL = "c", scope(t, "80"), time.Hour
		if _, err := bob.Invite(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
