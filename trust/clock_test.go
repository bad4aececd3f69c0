package trust

import (
	"errors"
	"testing"
	"time"
)

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
