package trust

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// backup copies the party's state; restore puts the copy in the place of what came since.
func (p *party) backup() (restore func()) {
	p.t.Helper()
	p.Close()
	files := map[string][]byte{}
	for _, name := range []string{StoreFile, RevocationFile} {
		b, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			p.t.Fatal(err)
		}
		files[name] = b
	}
	p.open()
	return func() {
		p.Close()
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(p.dir, name), b, 0o600); err != nil {
				p.t.Fatal(err)
			}
		}
		p.open()
	}
}

func (p *party) show() []byte {
	p.t.Helper()
	b, err := p.ShowHead()
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *party) seen(head []byte) bool {
	p.t.Helper()
	caught, err := p.SeenHead(head, "a server")
	if err != nil {
		p.t.Fatal(err)
	}
	return caught
}

// A copy of the state is put back after a revocation. What others were told gives it
// away, and nothing of it is in force until a person says so.
func TestRestoredBackup(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	carol := newParty(t, "carol")
	alice.show()
	restore := bob.backup()
	if err := bob.Revoke(alice.pub()); err != nil {
		t.Fatal(err)
	}
	told := bob.show()
	restore()
	if p, _ := bob.Peer(alice.pub()); p.State != Active {
		t.Fatal("the copy does not hold what was revoked")
	}
	if !bob.seen(told) {
		t.Fatal("not caught")
	}
	for range 2 { // and after a restart
		p, _ := bob.Peer(alice.pub())
		if s, ok := bob.Suspended(); !ok || p.State != Suspended || bob.Peers()[0].State != Suspended || s.Seen <= s.Ours || s.By != "a server" {
			t.Fatalf("%v, %+v", p.State, s)
		}
		bob.reopen()
	}
	if bob.seen(told) {
		t.Error("the same head is news")
	}
	if b := bob.show(); b != nil {
		t.Error("a head is shown while suspended")
	}

	// Nothing is granted, asked, or sent again; what is taken back is taken back.
	alice.now = alice.now.Add(time.Hour)
	alice.ask(bob, "80", "7")
	carol.ask(bob, "80", "7")
	for _, from := range []*party{alice, carol} {
		events := from.send(bob)
		if wantKind(t, events, RequestPending); !errors.Is(events[0].Err, ErrSuspended) {
			t.Error(events[0].Err)
		}
	}
	_, approve := bob.Approve(carol.pub(), ApproveOptions{})
	_, request := bob.tryAsk(alice, "80", "7")
	_, invite := bob.Invite(InviteOptions{Ports: DefaultAsk, TTL: time.Hour})
	for _, err := range []error{approve, request, invite} {
		if !errors.Is(err, ErrSuspended) {
			t.Error(err)
		}
	}
	if err := bob.Block(carol.pub()); err != nil {
		t.Error(err)
	}
	if err := bob.Unblock(carol.pub()); !errors.Is(err, ErrSuspended) {
		t.Error(err)
	}

	if err := bob.Resume(); err != nil {
		t.Fatal(err)
	}
	if p, _ := bob.Peer(alice.pub()); p.State != Active {
		t.Error("still suspended")
	}
	if err := bob.Resume(); !errors.Is(err, ErrNotSuspended) {
		t.Error(err)
	}
	h, err := crypto.ParseHead(bob.show())
	was, _ := crypto.ParseHead(told)
	if err != nil || h.Count <= was.Count || bob.seen(told) || bob.seen(bob.show()) {
		t.Errorf("head %d after %d, %v", h.Count, was.Count, err)
	}
}

// A restored copy that made changes of its own, as many as were lost, is caught by the mark.
func TestRestoredBackupWentOn(t *testing.T) {
	_, bob := trusted(t, "80", "7")
	carol := newParty(t, "carol")
	bob.show()
	restore := bob.backup()
	carol.ask(bob, "80", "7")
	carol.send(bob)
	told := bob.show()
	restore()
	for _, name := range []string{"dave", "erin", "frank"} {
		p := newParty(t, name)
		p.ask(bob, "80", "7")
		p.send(bob)
	}
	if h, _ := crypto.ParseHead(told); bob.Head() <= h.Count {
		t.Fatalf("%d changes against %d: not what this test is about", bob.Head(), h.Count)
	}
	if !bob.seen(told) {
		t.Fatal("not caught")
	}
}

// A key without its store is no restored backup: the store goes on above what was told.
func TestHeadAfterLostStore(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	told := bob.show()
	bob.wipe()
	if bob.seen(told) {
		t.Fatal("an empty store is taken for a backup")
	}
	h, _ := crypto.ParseHead(told)
	if got, _ := crypto.ParseHead(bob.show()); got.Count < h.Count {
		t.Errorf("head %d after %d", got.Count, h.Count)
	}
	alice.now = alice.now.Add(time.Minute)
	alice.ask(bob, "80", "7")
	alice.send(bob)
	bob.approve(alice)
	if p, _ := bob.Peer(alice.pub()); p.State != Active || bob.seen(told) {
		t.Error("suspended")
	}
}

// Nobody else's word suspends anything.
func TestHeadOfAnother(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	foreign, err := crypto.Head{Key: alice.pub(), Count: 1 << 40}.Sign(alice.key)
	if err != nil {
		t.Fatal(err)
	}
	forged := bob.show()
	forged[10]++
	for _, b := range [][]byte{nil, foreign, forged} {
		if caught, err := bob.SeenHead(b, "mallory"); caught || err == nil {
			t.Errorf("%x: %v, %v", b, caught, err)
		}
	}
	if _, ok := bob.Suspended(); ok {
		t.Error("suspended")
	}
}

// Whatever happens to an agent but a restored backup, no head that it ever showed
// is held against it.
func TestHeadNoFalseAlarm(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	alice, bob := trusted(t, "80", "7")
	var told [][]byte
	for i := range 300 {
		switch rng.IntN(6) {
		case 0:
			alice.now = alice.now.Add(time.Minute)
			alice.ask(bob, "80", "7")
			alice.send(bob)
		case 1:
			if _, err := bob.Approve(alice.pub(), ApproveOptions{}); err == nil {
				bob.send(alice)
			}
		case 2:
			_ = bob.Revoke(alice.pub())
			bob.send(alice)
		case 3:
			if rng.IntN(4) == 0 {
				bob.reopen()
			}
		default:
			if err := bob.Block(crypto.NewPrivateKey([32]byte{byte(i)}).Public()); err != nil {
				t.Fatal(err)
			}
			told = append(told, bob.show())
		}
		if len(told) > 0 && bob.seen(told[rng.IntN(len(told))]) {
			t.Fatal("a head of this very state is taken for another's")
		}
	}
	if n := len(bob.state.Shown); n > maxShown {
		t.Errorf("%d heads are remembered", n)
	}
	if bob.state.Settled == 0 {
		t.Error("no head was forgotten: the test is too short")
	}
}

// What the caller stores, deliveries and repetitions are no changes of trust.
func TestHeadCountsTrustOnly(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	before := bob.Head()
	if err := bob.PutMeta("port", []byte("1")); err != nil {
		t.Fatal(err)
	}
	bob.show()
	bob.show()
	if bob.Head() != before {
		t.Errorf("%d, was %d", bob.Head(), before)
	}
	if err := bob.Revoke(alice.pub()); err != nil || bob.Head() != before+1 {
		t.Errorf("%d, was %d, %v", bob.Head(), before, err)
	}
}
