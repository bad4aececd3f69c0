package trust

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

func (p *party) invite(change ...func(*InviteOptions)) (string, Invite) {
	p.t.Helper()
	o := InviteOptions{Contact: "0:0000.1234.5678#FP@rdv.example", Ports: scope(p.t, "80,1003"), TTL: time.Hour}
	for _, f := range change {
		f(&o)
	}
	token, err := p.Invite(o)
	if err != nil {
		p.t.Fatal(err)
	}
	inv, err := ParseInvite(token)
	if err != nil {
		p.t.Fatal(err)
	}
	return token, inv
}

func with(inv Invite) func(*RequestOptions) {
	return func(o *RequestOptions) { o.Invite = inv.Secret[:] }
}

func TestInvite(t *testing.T) {
	alice, bob, carol := newParty(t, "alice"), newParty(t, "bob"), newParty(t, "carol")
	token, inv := bob.invite()
	if inv.Contact == "" || inv.Ports.String() != "80,1003" || !inv.Expires.Equal(epoch.Add(time.Hour)) {
		t.Fatalf("%+v", inv)
	}
	if upper, err := ParseInvite(strings.ToUpper(token)); err != nil || upper.Secret != inv.Secret {
		t.Fatal(err)
	}
	if _, err := ParseInvite(token[:len(token)-1]); !errors.Is(err, ErrInvite) {
		t.Errorf("a token that was cut off: %v", err)
	}
	bob.reopen()
	alice.ask(bob, "80,443", "7", with(inv))
	mail := alice.mail(bob)
	wantKind(t, bob.take(mail), InviteUsed)
	peer, ok := bob.Peer(alice.pub())
	if !ok || peer.In.String() != "80" || peer.Name != "alice" {
		t.Fatalf("%+v", peer)
	}
	wantKind(t, bob.send(alice), Granted)
	matches(alice, bob)

	// The same request again is a repetition, not a second use.
	wantKind(t, bob.take(mail), Duplicate)
	wantKind(t, bob.send(alice), Duplicate)

	// Another key with the same secret: both are named, and it waits.
	bob.reopen()
	carol.ask(bob, "80", "7", with(inv))
	events := carol.send(bob)
	wantKind(t, events, InviteReused)
	if !errors.Is(events[0].Err, ErrInviteUsed) || !strings.Contains(events[0].Text, alice.pub().String()) || !strings.Contains(events[0].Text, carol.pub().String()) {
		t.Fatalf("%+v", events[0])
	}
	if _, ok := bob.Peer(carol.pub()); ok || len(bob.Incoming()) != 1 || len(bob.Outbox()) != 0 {
		t.Fatal("a used invite gave trust")
	}
}

func TestInviteThatDoesNotHold(t *testing.T) {
	for _, c := range []struct {
		name string
		want error
		make func(alice, bob *party) Invite
	}{
		{"unknown", ErrInvite, func(alice, bob *party) Invite { return Invite{Secret: [16]byte{1}} }},
		{"expired", ErrInviteExpired, func(alice, bob *party) Invite {
			_, inv := bob.invite()
			bob.now = bob.now.Add(time.Hour)
			return inv
		}},
		{"for another", ErrInviteOther, func(alice, bob *party) Invite {
			other := crypto.Fingerprint{1}
			_, inv := bob.invite(func(o *InviteOptions) { o.For = &other })
			return inv
		}},
		{"name taken", ErrNameTaken, func(alice, bob *party) Invite {
			_, inv := bob.invite(func(o *InviteOptions) { o.Name = "worker" })
			bob.ask(newParty(bob.t, "carol"), "80", "7", func(o *RequestOptions) { o.As = "worker" })
			return inv
		}},
	} {
		alice, bob := newParty(t, "alice"), newParty(t, "bob")
		inv := c.make(alice, bob)
		alice.ask(bob, "80", "7", with(inv))
		events := alice.send(bob)
		wantKind(t, events, RequestPending)
		if !errors.Is(events[0].Err, c.want) {
			t.Errorf("%s: %v", c.name, events[0].Err)
		}
		if len(bob.Peers()) != 0 || len(bob.mail(alice)) != 0 {
			t.Errorf("%s: gave trust", c.name)
		}
		bob.approve(alice) // it is an ordinary request now
		wantKind(t, bob.send(alice), Granted)
		matches(alice, bob)
	}
}

func TestInviteBound(t *testing.T) {
	alice, bob := newParty(t, "alice"), newParty(t, "bob")
	fp := alice.pub().Fingerprint()
	_, inv := bob.invite(func(o *InviteOptions) { o.For, o.Name, o.Trust = &fp, "worker", 2*time.Hour })
	if inv.For == nil || *inv.For != fp {
		t.Fatalf("%+v", inv)
	}
	alice.ask(bob, "80", "7", with(inv))
	wantKind(t, alice.send(bob), InviteUsed)
	peer, _ := bob.Peer(alice.pub())
	if peer.Name != "worker" || !peer.Expires.Equal(epoch.Add(2*time.Hour)) {
		t.Fatalf("%+v", peer)
	}
}

func TestInviteOptions(t *testing.T) {
	bob := newParty(t, "bob")
	for name, o := range map[string]InviteOptions{
		"no ports":   {TTL: time.Hour},
		"all ports":  {TTL: time.Hour, Ports: AllPorts},
		"no ttl":     {Ports: DefaultAsk},
		"long ttl":   {Ports: DefaultAsk, TTL: 25 * time.Hour},
		"bad name":   {Ports: DefaultAsk, TTL: time.Hour, Name: "localhost"},
		"long trust": {Ports: DefaultAsk, TTL: time.Hour, Trust: -1},
	} {
		if _, err := bob.Invite(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	_, inv := bob.invite()
	if err := inv.Check(epoch.Add(59 * time.Minute)); err != nil {
		t.Error(err)
	}
	if err := inv.Check(epoch.Add(time.Hour)); !errors.Is(err, ErrInviteExpired) {
		t.Error(err)
	}
	bob.now = bob.now.Add(40 * 24 * time.Hour)
	bob.invite()
	if len(bob.invites) != 1 {
		t.Error("old invites are kept for ever")
	}
}

func FuzzInvite(f *testing.F) {
	fp := crypto.Fingerprint{1, 2, 3}
	f.Add(Invite{Contact: "0:0000.0001.0002#abc@host", Ports: DefaultAsk, Expires: epoch, For: &fp}.token())
	f.Add(Invite{Ports: AllPorts, Expires: epoch}.token())
	f.Add("pilot-invite1.aaaa")
	f.Fuzz(func(t *testing.T, token string) {
		inv, err := ParseInvite(token)
		if err == nil && inv.token() != strings.ToLower(strings.TrimSpace(token)) {
			t.Fatalf("%q is accepted but is not canonical", token)
		}
	})
}
