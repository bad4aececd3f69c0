package rendezvous

import (
	"context"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

func (a *agent) withdrawal(serial uint64) []byte {
	return ipam.Withdrawal{Server: a.server.Key, Serial: serial}.Sign(a.id.Key)
}

// TestWithdraw: an agent that takes its claim back is gone at once and after a
// restart, and comes back only with a newer claim.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	r := start(t, Config{StateDir: dir})
	alice := newAgent(t, "alice", r.addr)
	c := alice.control()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Withdraw(ctx, alice.withdrawal(9))) // nothing is claimed yet
	must(c.Claim(ctx, alice.claim, alice.card))
	alice.until(relay.Registered)
	visitor := dial(t, relay.DialConfig{Server: r.addr})
	must(visitor.Put(ctx, alice.fingerprint(), []byte("mail")))

	must(c.Withdraw(ctx, alice.withdrawal(1)))
	if r.table.home(alice.fingerprint()) != nil {
		t.Error("the session is still there")
	}
	_, err := relay.FetchCard(ctx, relay.DialConfig{Server: r.addr}, alice.fingerprint())
	wantErr(t, err, relay.ErrNotFound)
	wantErr(t, visitor.Put(ctx, alice.fingerprint(), []byte("more")), relay.ErrNotFound)
	_, err = c.Mail(ctx)
	wantErr(t, err, relay.ErrNotFound)
	must(c.Withdraw(ctx, alice.withdrawal(1)))

	c.Close()
	visitor.Close()
	r.stop()
	r = start(t, Config{StateDir: dir})
	alice.server = r.addr
	c = alice.control()
	wantErr(t, c.Claim(ctx, alice.claim, alice.card), relay.ErrStale)
	alice.sign(2)
	must(c.Claim(ctx, alice.claim, alice.card))
	if mail, err := c.Mail(ctx); err != nil || len(mail) > 0 {
		t.Errorf("mail %v, %v", mail, err)
	}
	wantErr(t, c.Withdraw(ctx, alice.withdrawal(1)), relay.ErrStale) // the old withdrawal again
}

// TestWithdrawRefused: nobody can withdraw for another, or elsewhere, or learn by
// trying who is known here.
func TestWithdrawRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, Config{StateDir: t.TempDir()})
	alice, bob := newAgent(t, "alice", r.addr), newAgent(t, "bob", r.addr)
	a, b := alice.control(), bob.control()
	for c, x := range map[*relay.Control]*agent{a: alice, b: bob} {
		if err := c.Claim(ctx, x.claim, x.card); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := ipam.Withdrawal{Server: crypto.DHPrivate{9}.Public(), Serial: 5}.Sign(alice.id.Key)
	wantErr(t, a.Withdraw(ctx, elsewhere), relay.ErrRefused)
	wantErr(t, a.Withdraw(ctx, alice.withdrawal(1)[1:]), relay.ErrRefused)
	wantErr(t, a.Withdraw(ctx, nil), relay.ErrRefused)
	wantErr(t, a.Withdraw(ctx, alice.withdrawal(0)), relay.ErrStale)
	wantErr(t, b.Withdraw(ctx, alice.withdrawal(5)), relay.ErrRefused)

	// With another registration key, whether or not the fingerprint is known.
	stranger := crypto.DHPrivate{7}
	known := dial(t, relay.DialConfig{Server: r.addr, Static: &stranger, Key: alice.id.Key.Public()})
	unknown := dial(t, relay.DialConfig{Server: r.addr, Static: &stranger, Key: newAgent(t, "carol", r.addr).id.Key.Public()})
	for _, c := range []*relay.Control{known, unknown} {
		if err := c.Withdraw(ctx, alice.withdrawal(5)); err != nil {
			t.Errorf("a stranger is told more than that nothing of it is here: %v", err)
		}
	}
	wantErr(t, dial(t, relay.DialConfig{Server: r.addr}).Withdraw(ctx, alice.withdrawal(5)), relay.ErrRefused)
	for _, x := range []*agent{alice, bob} {
		if _, err := relay.FetchCard(ctx, relay.DialConfig{Server: r.addr}, x.fingerprint()); err != nil {
			t.Errorf("%v: %v", x.fingerprint(), err)
		}
	}
}
