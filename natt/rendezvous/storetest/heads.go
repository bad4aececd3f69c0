package storetest

import (
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/rendezvous"
)

// The head with the highest count stays, each agent's own, until it withdraws.
func testHeads(t *testing.T, s rendezvous.Store) {
	a, b := agent(1), agent(2)
	fa, fb := a.Key.Fingerprint(), b.Key.Fingerprint()
	must(t, s.Register(a))
	_, err := s.Head(fa)
	want(t, err, rendezvous.ErrNotFound)
	put := func(of crypto.Fingerprint, count uint64, signed, kept string) {
		t.Helper()
		given := []byte(signed)
		got, err := s.PutHead(of, count, given)
		must(t, err)
		given[0] = 'X' // slices belong to the caller
		if string(got) != kept {
			t.Errorf("put %q: kept %q, want %q", signed, got, kept)
		}
		got[0] = 'Y'
		if got, err := s.Head(of); err != nil || string(got) != kept {
			t.Errorf("after %q: %q, %v; want %q", signed, got, err, kept)
		}
	}
	put(fa, 5, "five", "five")
	put(fa, 4, "four", "five")
	put(fa, 5, "other", "five")
	put(fb, 1, "one", "one")
	put(fa, 6, "six", "six")
	if agents, mail, err := s.Count(); agents != 1 || mail != 0 || err != nil {
		t.Errorf("Count %d, %d, %v", agents, mail, err)
	}
	must(t, s.Withdraw(fa, a.ClaimSerial))
	_, err = s.Head(fa)
	want(t, err, rendezvous.ErrNotFound)
	put(fb, 1, "again", "one")
}
