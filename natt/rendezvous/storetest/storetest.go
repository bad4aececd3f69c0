// Package storetest holds the conformance suite of rendezvous.Store: what every
// engine does alike. An engine's test calls Conformance with a function that
// opens an empty store.
package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/rendezvous"
)

// Conformance runs the suite. It closes the stores that open returns.
func Conformance(t *testing.T, open func(t *testing.T) rendezvous.Store) {
	for name, test := range map[string]func(*testing.T, rendezvous.Store){
		"Register":    testRegister,
		"Address":     testAddress,
		"Serials":     testSerials,
		"Withdraw":    testWithdraw,
		"Mail":        testMail,
		"Repeated":    testRepeated,
		"Eviction":    testEviction,
		"Expire":      testExpire,
		"Heads":       testHeads,
		"Owned":       testOwned,
		"Concurrent":  testConcurrent,
		"ManyAddress": testRace,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test(t, s)
		})
	}
}

// agent returns agent number n; its key is only a number, no store checks keys.
func agent(n byte) rendezvous.Agent {
	return rendezvous.Agent{
		Key: crypto.PublicKey{n, 1}, Addr: [6]byte{0, 0, 0, 0, 1, n}, Counter: uint64(n),
		Registration: crypto.DHPublic{n, 2}, ClaimSerial: 10, CardSerial: 10,
		Claim: []byte{n, 'c'}, Card: []byte{n, 'd', 'e'},
	}
}

func same(a, b rendezvous.Agent) bool {
	ok := slices.Equal(a.Claim, b.Claim) && slices.Equal(a.Card, b.Card)
	a.Claim, a.Card, b.Claim, b.Card = nil, nil, nil, nil
	return ok && fmt.Sprintf("%x", a) == fmt.Sprintf("%x", b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

func expectAgent(t *testing.T, s rendezvous.Store, w rendezvous.Agent) {
	t.Helper()
	got, err := s.Agent(w.Key.Fingerprint())
	if err != nil || !same(got, w) {
		t.Fatalf("agent %+v, %v; want %+v", got, err, w)
	}
}

func testRegister(t *testing.T, s rendezvous.Store) {
	a, b := agent(1), agent(2)
	_, err := s.Agent(a.Key.Fingerprint())
	want(t, err, rendezvous.ErrNotFound)
	must(t, s.Register(a))
	must(t, s.Register(a))
	must(t, s.Register(b))
	expectAgent(t, s, a)
	expectAgent(t, s, b)
	if agents, mail, err := s.Count(); agents != 2 || mail != 0 || err != nil {
		t.Errorf("Count %d, %d, %v", agents, mail, err)
	}
}

func testAddress(t *testing.T, s rendezvous.Store) {
	a, b := agent(1), agent(2)
	must(t, s.Register(a))
	b.Addr = a.Addr
	want(t, s.Register(b), rendezvous.ErrAddressTaken)
	_, err := s.Agent(b.Key.Fingerprint())
	want(t, err, rendezvous.ErrNotFound)

	moved := a // the same key at another address: the old one stays its own for ever
	moved.Addr, moved.ClaimSerial, moved.Claim = [6]byte{0, 0, 9, 9, 9, 9}, 11, []byte("moved")
	must(t, s.Register(moved))
	expectAgent(t, s, moved)
	want(t, s.Register(b), rendezvous.ErrAddressTaken)
}

func testSerials(t *testing.T, s rendezvous.Store) {
	a := agent(1)
	must(t, s.Register(a))
	for _, change := range []func(*rendezvous.Agent){
		func(a *rendezvous.Agent) { a.Claim = []byte("other") },
		func(a *rendezvous.Agent) { a.Claim, a.ClaimSerial = []byte("other"), 9 },
		func(a *rendezvous.Agent) { a.Card = []byte("other") },
		func(a *rendezvous.Agent) { a.Card, a.CardSerial = []byte("other"), 9 },
		func(a *rendezvous.Agent) {
			a.Card, a.CardSerial, a.Claim, a.ClaimSerial = []byte("n"), 11, []byte("n"), 9
		},
	} {
		b := a
		change(&b)
		want(t, s.Register(b), rendezvous.ErrStale)
		expectAgent(t, s, a)
	}
	a.Card, a.CardSerial = []byte("newer"), 11
	must(t, s.Register(a))
	expectAgent(t, s, a)
}

func put(t *testing.T, s rendezvous.Store, to crypto.Fingerprint, body string, bucket uint32, at int64) uint64 {
	t.Helper()
	id, err := s.Put(to, rendezvous.Mail{Received: time.UnixMilli(at), Bucket: bucket, Body: []byte(body)}, 4)
	must(t, err)
	return id
}

func expectMail(t *testing.T, s rendezvous.Store, of crypto.Fingerprint, bodies ...string) []rendezvous.Mail {
	t.Helper()
	box, err := s.Mail(of, 0, 100)
	must(t, err)
	var got []string
	var last uint64
	for _, m := range box {
		got = append(got, string(m.Body))
		if m.ID <= last {
			t.Errorf("ID %d after %d", m.ID, last)
		}
		last = m.ID
	}
	if !slices.Equal(got, bodies) {
		t.Fatalf("box holds %q, want %q", got, bodies)
	}
	return box
}

func testMail(t *testing.T, s rendezvous.Store) {
	alice, bob := crypto.Fingerprint{1}, crypto.Fingerprint{2}
	expectMail(t, s, alice)
	first := put(t, s, alice, "a", 1, 1000)
	put(t, s, bob, "x", 1, 1001)
	second := put(t, s, alice, "b", 2, 1002)
	box := expectMail(t, s, alice, "a", "b")
	if box[0].ID != first || box[1].ID != second || box[1].Bucket != 2 || box[1].Received.UnixMilli() != 1002 {
		t.Errorf("box %+v, IDs %d and %d", box, first, second)
	}
	if rest, err := s.Mail(alice, first, 100); err != nil || len(rest) != 1 || rest[0].ID != second {
		t.Errorf("after %d: %+v, %v", first, rest, err)
	}
	if one, err := s.Mail(alice, 0, 1); err != nil || len(one) != 1 || one[0].ID != first {
		t.Errorf("first: %+v, %v", one, err)
	}
	if none, err := s.Mail(alice, ^uint64(0), 1); err != nil || len(none) != 0 {
		t.Errorf("after the last ID: %+v, %v", none, err)
	}
	must(t, s.Ack(bob, first)) // not his
	expectMail(t, s, alice, "a", "b")
	must(t, s.Ack(alice, first, 12345))
	expectMail(t, s, alice, "b")
	must(t, s.Ack(alice))
	expectMail(t, s, bob, "x")
	if third := put(t, s, alice, "c", 1, 1003); third <= second {
		t.Errorf("ID %d after %d", third, second)
	}
	if _, mail, err := s.Count(); mail != 3 || err != nil {
		t.Errorf("Count %d, %v", mail, err)
	}
}

func testRepeated(t *testing.T, s rendezvous.Store) {
	alice := crypto.Fingerprint{1}
	first := put(t, s, alice, "a", 1, 1)
	if again := put(t, s, alice, "a", 2, 2); again != first {
		t.Errorf("repeated item got ID %d, want %d", again, first)
	}
	expectMail(t, s, alice, "a")
	put(t, s, crypto.Fingerprint{2}, "a", 1, 1)
	expectMail(t, s, crypto.Fingerprint{2}, "a")
}

func testEviction(t *testing.T, s rendezvous.Store) {
	alice := crypto.Fingerprint{1}
	put(t, s, alice, "honest", 7, 1)
	for i := range 20 { // a flooder only ever replaces itself
		put(t, s, alice, fmt.Sprint("flood", i), 1, int64(2+i))
	}
	expectMail(t, s, alice, "honest", "flood17", "flood18", "flood19")
	put(t, s, alice, "second", 8, 100)
	expectMail(t, s, alice, "honest", "flood18", "flood19", "second")
	put(t, s, alice, "third", 9, 101)
	put(t, s, alice, "fourth", 10, 102) // all equal: the oldest goes
	expectMail(t, s, alice, "flood19", "second", "third", "fourth")
}

func testExpire(t *testing.T, s rendezvous.Store) {
	alice, bob := crypto.Fingerprint{1}, crypto.Fingerprint{2}
	put(t, s, alice, "old", 1, 1000)
	put(t, s, alice, "new", 1, 3000)
	put(t, s, bob, "old", 1, 1500)
	if n, err := s.Expire(time.UnixMilli(2000)); n != 2 || err != nil {
		t.Fatalf("Expire: %d, %v", n, err)
	}
	expectMail(t, s, alice, "new")
	expectMail(t, s, bob)
	if n, err := s.Expire(time.UnixMilli(3000)); n != 0 || err != nil {
		t.Fatalf("Expire: %d, %v", n, err)
	}
}

func testOwned(t *testing.T, s rendezvous.Store) {
	a := agent(1)
	must(t, s.Register(a))
	got, err := s.Agent(a.Key.Fingerprint())
	must(t, err)
	clear(got.Card)
	body := []byte("mail")
	_, err = s.Put(a.Key.Fingerprint(), rendezvous.Mail{Received: time.UnixMilli(1), Body: body}, 4)
	must(t, err)
	clear(body)
	clear(expectMail(t, s, a.Key.Fingerprint(), "mail")[0].Body)
	expectMail(t, s, a.Key.Fingerprint(), "mail")
	expectAgent(t, s, agent(1))
}

func testConcurrent(t *testing.T, s rendezvous.Store) {
	var group sync.WaitGroup
	for n := range byte(4) {
		group.Go(func() {
			fp := crypto.Fingerprint{n}
			for i := range 10 {
				id, err := s.Put(fp, rendezvous.Mail{Received: time.UnixMilli(1), Body: []byte{n, byte(i)}}, 4)
				if err == nil && i%2 == 1 {
					err = s.Ack(fp, id)
				}
				if err == nil {
					err = s.Register(agent(n))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for n := range byte(4) {
		if box, err := s.Mail(crypto.Fingerprint{n}, 0, 100); err != nil || len(box) < 2 || len(box) > 4 {
			t.Errorf("box %d: %d items, %v", n, len(box), err)
		}
		expectAgent(t, s, agent(n))
	}
}

// testRace lets many keys claim one address: one of them gets it.
func testRace(t *testing.T, s rendezvous.Store) {
	var group sync.WaitGroup
	won := make(chan byte, 16)
	for n := range byte(16) {
		group.Go(func() {
			a := agent(n)
			a.Addr = [6]byte{0, 0, 5, 5, 5, 5}
			switch err := s.Register(a); {
			case err == nil:
				won <- n
			case !errors.Is(err, rendezvous.ErrAddressTaken):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(won) != 1 {
		t.Errorf("%d keys got the address", len(won))
	}
}
