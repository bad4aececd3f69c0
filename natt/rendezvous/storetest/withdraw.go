package storetest

import (
	"testing"

	"github.com/pilotnet/pilot/natt/rendezvous"
)

func testWithdraw(t *testing.T, s rendezvous.Store) {
	a, b := agent(1), agent(2)
	fp := a.Key.Fingerprint()
	want(t, s.Withdraw(fp, 10), rendezvous.ErrNotFound)
	must(t, s.Register(a)) // what withdrew nothing forbids nothing
	must(t, s.Register(b))
	put(t, s, fp, "to a", 1, 1)
	put(t, s, fp, "to a too", 1, 2)
	put(t, s, b.Key.Fingerprint(), "to b", 1, 3)

	want(t, s.Withdraw(fp, 9), rendezvous.ErrStale)
	expectAgent(t, s, a)
	expectMail(t, s, fp, "to a", "to a too")

	must(t, s.Withdraw(fp, 10))
	_, err := s.Agent(fp)
	want(t, err, rendezvous.ErrNotFound)
	expectMail(t, s, fp)
	expectAgent(t, s, b)
	expectMail(t, s, b.Key.Fingerprint(), "to b")
	if agents, mail, err := s.Count(); agents != 1 || mail != 1 || err != nil {
		t.Errorf("Count %d, %d, %v", agents, mail, err)
	}
	want(t, s.Withdraw(fp, 11), rendezvous.ErrNotFound)

	want(t, s.Register(a), rendezvous.ErrStale) // the old claim does not come back
	taker := agent(3)
	taker.Addr = a.Addr
	want(t, s.Register(taker), rendezvous.ErrAddressTaken)
	again := a
	again.ClaimSerial, again.Claim = 11, []byte("again")
	want(t, s.Register(again), rendezvous.ErrStale) // with the old card
	again.CardSerial, again.Card = 11, []byte("again too")
	must(t, s.Register(again))
	expectAgent(t, s, again)
	want(t, s.Withdraw(fp, 10), rendezvous.ErrStale) // a withdrawal that comes again
	expectAgent(t, s, again)
}
