package trust

import (
	"testing"
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
	if len(alice.Outbox())+len(bob.Outbox()) != 0 {
		t.Fatal("mail is left")
	}
}
