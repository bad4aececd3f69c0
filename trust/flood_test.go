package trust

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// TestHostileTrustFlood: ten thousand keys ask (a few hundred without PILOT_HOSTILE). What is
// kept of them is bounded, in memory and on disk; a peer does not notice; a friend who asked
// before is forgotten with the oldest, and heard when she asks again.
func TestHostileTrustFlood(t *testing.T) {
	t.Parallel()
	n, pending, strangers := 400, 32, 128
	if os.Getenv("PILOT_HOSTILE") != "" {
		n, pending, strangers = 10_000, 256, 1024
	}
	if raceEnabled {
		n /= 2
	}
	alice, bob := trusted(t, "80", "7")
	carol := newParty(t, "carol")
	bob.limits = limits{pending: pending, strangers: strangers}
	asked := carol.ask(bob, "80", "7")
	wantKind(t, carol.send(bob), RequestPending)
	bob.clear, bob.sealer = true, clearMail{} // what it costs to open mail is not the question
	seal := bob.seal.Public()
	began := time.Now()
	for i := range n {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[8:], uint64(i+1))
		key := crypto.NewPrivateKey(seed)
		card := carol.card()
		card.Key = key.Public()
		st := Statement{
			Kind: KindRequest, Serial: uint64(bob.now.UnixMilli()), Issuer: key.Public(), Subject: bob.pub(), Random: [32]byte{1},
			Tunnel: testDH("flood").Public(), Ask: DefaultAsk, Offer: DefaultOffer, Name: "alice", Reason: "let me in", Card: signCard(t, key, card),
		}
		signed, err := st.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		sealed, _ := clearMail{}.seal(seal, signed)
		bob.now = bob.now.Add(time.Millisecond)
		ev, err := bob.Receive(sealed)
		if err != nil || ev.Kind != RequestPending {
			t.Fatalf("request %d: %v, %v", i, ev.Kind, err)
		}
	}
	t.Logf("%d requests in %v", n, time.Since(began).Round(time.Millisecond))
	check := func() {
		t.Helper()
		if got := len(bob.Incoming()); got > pending+1 {
			t.Errorf("%d requests are kept", got)
		}
		if got := len(bob.book); got > strangers+2 {
			t.Errorf("%d keys are kept", got)
		}
		if p, _ := bob.Peer(alice.pub()); p.State != Active || p.Name != "alice" {
			t.Errorf("the peer is %v, %q", p.State, p.Name)
		}
	}
	check()
	bob.reopen()
	check()
	info, err := os.Stat(filepath.Join(bob.dir, StoreFile))
	if err != nil || info.Size() > int64(strangers)*32<<10 {
		t.Errorf("the store has %d bytes, %v", info.Size(), err)
	}
	bob.clear, bob.sealer = false, hpke{}
	bob.limits = limits{pending: pending, strangers: strangers}
	for _, p := range bob.Incoming() {
		if p.Key == carol.pub() {
			t.Fatal("the friend's request is still there: the flood was too small")
		}
	}
	if again := carol.ask(bob, "80", "7"); again.ID != asked.ID {
		t.Error("the friend asks something else")
	}
	carol.send(bob)
	if _, err := bob.Approve(carol.pub(), ApproveOptions{As: "carol"}); err != nil {
		t.Fatal(err)
	}
	settle(carol, bob)
	matches(carol, bob)
	alice.now = bob.now
	alice.ask(bob, "80", "7")
	wantKind(t, alice.send(bob), Renewed)
	settle(alice, bob)
	matches(alice, bob)
}
