package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/rendezvous"
)

// The sequences of trust over long absences, wrong clocks, and servers that are lost.

// A week of absence: mail waits for seven days, a pair for ever.
func TestLongTrustWeekAway(t *testing.T) {
	if raceEnabled && !hostile() {
		t.Skip("three weeks of virtual time take the race detector too long")
	}
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		bob.stop()
		alice.asks(bob, RequestOptions{Contact: alice.contactOf(bob)})
		eventually(t, "the request is at the server", func() bool { return len(alice.store.Outbox()) == 0 })
		alice.stop()
		pass(8 * 24 * time.Hour)
		bob.start()
		bob.registered()
		pass(time.Minute)
		if n := len(bob.Pending()); n != 0 {
			t.Errorf("%d requests after eight days", n)
		}
		alice.start()
		alice.registered()
		alice.asks(bob, RequestOptions{}) // the same once more is the stored one
		bob.stop()
		pass(6 * 24 * time.Hour)
		bob.start()
		bob.approves(alice)
		agree(alice, bob)
		alice.stop()
		pass(7 * 24 * time.Hour)
		alice.start()
		passes(alice, bob)
		agree(alice, bob)
	})
}

// Either clock is off by a day, at 1970 or at 2046: both sides agree, and packets pass.
func TestTrustClocks(t *testing.T) {
	at := func(year int) time.Duration {
		return time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
	}
	for name, off := range map[string]time.Duration{
		"a day behind": -24 * time.Hour, "a day ahead": 24 * time.Hour, "1970": at(1970), "2046": at(2046),
	} {
		for _, who := range []string{"alice", "bob"} {
			t.Run(name+" "+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					defer w.close()
					set := func(c *Config) {
						if c.Name == who {
							c.Clock = offClock{labClock{time.Now()}, off}
						}
					}
					alice, bob := w.agentWith("alice", set), w.agentWith("bob", set)
					var ttl time.Duration
					if off.Abs() <= 24*time.Hour {
						ttl = 30 * 24 * time.Hour
					}
					alice.asks(bob, RequestOptions{TTL: ttl})
					bob.approves(alice)
					agree(alice, bob)
					pass(3 * time.Minute) // new keys
					agree(alice, bob)
					if ttl != 0 && (alice.peer("bob").Expires == nil || bob.peer("alice").Expires == nil) {
						t.Error("the trust does not end")
					}
				})
			})
		}
	}
}

// A request of limited life from a clock at 1970 is long over for the receiver: it
// asks nobody, and both sides stay strangers.
func TestTrustClockTooFarForExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agentWith("alice", func(c *Config) { c.Clock = offClock{labClock{time.Now()}, -30 * 365 * 24 * time.Hour} })
		bob := w.agentWith("bob", nil)
		alice.asks(bob, RequestOptions{TTL: time.Hour})
		pass(5 * time.Minute)
		if len(bob.Pending()) != 0 || len(alice.Outgoing()) != 1 {
			t.Errorf("%d wait at bob, %d at alice", len(bob.Pending()), len(alice.Outgoing()))
		}
		apart(alice, bob)
	})
}

// The server is down when the request, and when the grant, is to go out.
func TestTrustServerRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		restart := func() { w.stop(); pass(time.Minute); w.startServer() }
		bob.stop()
		alice.asks(bob, RequestOptions{Contact: alice.contactOf(bob)})
		eventually(t, "the request is at the server", func() bool { return len(alice.store.Outbox()) == 0 })
		restart()
		bob.start()
		bob.waiting(1)
		w.stop()
		bob.approves(alice)
		pass(10 * time.Minute)
		if len(bob.store.Outbox()) != 1 {
			t.Errorf("%d mails wait", len(bob.store.Outbox()))
		}
		w.startServer()
		pass(10 * time.Minute) // the outbox asks again after five
		agree(alice, bob)
	})
}

// The server loses all: agents claim again by themselves, live pairs do not notice, and
// what was lost in its mailbox can be asked again.
func TestTrustServerWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		carol := w.agentWith("carol", nil)
		alice.befriends(bob)
		carol.stop()
		alice.asks(carol, RequestOptions{Contact: alice.contactOf(carol)})
		eventually(t, "the request is at the server", func() bool { return len(alice.store.Outbox()) == 0 })
		done := make(chan result)
		alice.pathTo("bob", "direct")
		go func() { done <- stream(alice, bob, 2000, 10*time.Millisecond) }()
		pass(time.Second)
		w.stop()
		w.store = rendezvous.NewMemoryStore()
		w.startServer()
		if r := <-done; r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
		carol.start()
		carol.registered()
		pass(time.Minute)
		if n := len(carol.Pending()); n != 0 {
			t.Fatalf("%d requests out of an empty server", n)
		}
		alice.registered()
		alice.asks(carol, RequestOptions{})
		carol.approves(alice)
		agree(alice, carol)
		agree(alice, bob)
	})
}

// The first home server is dead: request and grant go by the second.
func TestTrustSecondServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		x := w.another()
		defer x.stop()
		both := func(c *Config) { c.Servers = []crypto.Server{w.serverRef(), x.serverRef()} }
		alice, bob := w.agentWith("alice", both), w.agentWith("bob", both)
		eventually(t, "both are at home on both", func() bool { return alice.ID().Claimed && bob.ID().Claimed })
		w.net.Cut(w.server, nil)
		s := x.serverRef()
		contact := ipam.Contact{Addr: bob.cfg.Identity.Addr(), Fingerprint: bob.key().Fingerprint(), Host: s.Host, Port: s.Port}
		alice.asks(bob, RequestOptions{Contact: contact.String()})
		bob.approves(alice)
		agree(alice, bob)
	})
}
