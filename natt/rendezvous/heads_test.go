package rendezvous

import (
	"bytes"
	"context"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

func (a *agent) head(count uint64) []byte {
	b, err := crypto.Head{Key: a.id.Key.Public(), Count: count, Mark: count}.Sign(a.id.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// TestHeadKept: a home server keeps the newest head that an agent signed, over a
// restart too, and shows it to nobody else and takes nobody else's.
func TestHeadKept(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	r := start(t, Config{StateDir: dir})
	alice, bob := newAgent(t, "alice", r.addr), newAgent(t, "bob", r.addr).claimed()
	c := alice.control()
	_, err := c.Head(ctx, nil)
	wantErr(t, err, relay.ErrNotFound) // claim first
	alice.claimed()
	expect := func(c *relay.Control, show, kept []byte) {
		t.Helper()
		got, err := c.Head(ctx, show)
		if err != nil || !bytes.Equal(got, kept) {
			t.Errorf("kept %x, %v; want %x", got, err, kept)
		}
	}
	expect(c, nil, nil)
	expect(c, alice.head(5), alice.head(5))
	expect(c, alice.head(4), alice.head(5))
	expect(c, nil, alice.head(5))
	expect(bob.control(), nil, nil)
	_, err = bob.control().Head(ctx, alice.head(9))
	wantErr(t, err, relay.ErrRefused)
	forged := alice.head(9)
	forged[15]++
	_, err = c.Head(ctx, forged)
	wantErr(t, err, relay.ErrRefused)
	_, err = dial(t, relay.DialConfig{Server: r.addr}).Head(ctx, nil)
	wantErr(t, err, relay.ErrRefused) // a visitor

	c.Close()
	r.stop()
	r = start(t, Config{StateDir: dir})
	alice.server = r.addr
	expect(alice.control(), nil, alice.head(5))
	expect(alice.control(), alice.head(6), alice.head(6))
}
