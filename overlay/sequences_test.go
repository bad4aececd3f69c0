package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust"
)

// The sequences of trust: whatever is lost, late, repeated, crossed or restored
// between two agents and their server, both end with the same pair, or both
// without one.

// offClock is a clock that is wrong by a constant.
type offClock struct {
	labClock
	off time.Duration
}

func (c offClock) Now() time.Time { return time.Now().Add(c.off) }

// agentWith starts a node with a public address and settings of its own, and waits until it
// is at home.
func (w *world) agentWith(name string, set func(*Config)) *agent {
	a := w.launch(name, set)
	a.registered()
	return a
}

func (w *world) launch(name string, set func(*Config)) *agent {
	a := &agent{t: w.t, dir: w.t.TempDir()}
	a.router = w.net.NAT(natlab.Full, netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + len(w.agents))}))
	a.host = a.router.Host(fmt.Sprint(name, len(w.agents)))
	a.cfg = Config{
		StateDir: a.dir, Name: name, Identity: identity(w.t, name), Servers: []crypto.Server{w.serverRef()},
		Underlay: labUnderlay{a.host}, Clock: labClock{time.Now()}, Logger: testLogger(w.t, name), Version: "test",
	}
	if set != nil {
		set(&a.cfg)
	}
	a.dir = a.cfg.StateDir
	a.start()
	w.agents = append(w.agents, a)
	return a
}

// pair is a world with alice and bob, at home and strangers.
func pair(t testing.TB) (w *world, alice, bob *agent) {
	w = newWorld(t)
	return w, w.agentWith("alice", nil), w.agentWith("bob", nil)
}

// friends is a world in which alice and bob trust each other.
func friends(t testing.TB) (w *world, alice, bob *agent) {
	w, alice, bob = pair(t)
	alice.befriends(bob)
	return w, alice, bob
}

// befriends makes a pair of two strangers.
func (a *agent) befriends(b *agent) {
	a.t.Helper()
	a.asks(b, RequestOptions{})
	b.approves(a)
	agree(a, b)
}

func (a *agent) asks(b *agent, o RequestOptions) {
	a.t.Helper()
	if o.Contact == "" {
		o.Contact = b.contact()
	}
	if o.Reason == "" {
		o.Reason = "test"
	}
	if o.Ports == "" {
		o.Ports, o.Offer = "7", "7"
	}
	if _, err := a.Request(timeout(a.t), o); err != nil {
		a.t.Fatalf("%s asks %s: %+v", a.cfg.Name, b.cfg.Name, err)
	}
}

func (a *agent) approves(b *agent) {
	a.t.Helper()
	a.waiting(1)
	if _, err := a.Approve(timeout(a.t), ApproveOptions{Peer: b.ID().Fingerprint}); err != nil {
		a.t.Fatalf("%s approves %s: %+v", a.cfg.Name, b.cfg.Name, err)
	}
}

// waiting wants so many requests to wait for a decision.
func (a *agent) waiting(n int) {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" has what waits", func() bool { return len(a.Pending()) == n })
}

func (a *agent) key() crypto.PublicKey { return a.cfg.Identity.Key.Public() }

func newest(p trust.Peer) *trust.Slot {
	if p.Next != nil {
		return p.Next
	}
	return p.Current
}

// agree waits until both sides hold one pair, with terms that mirror each other and
// nothing left to be said, and shows that packets pass both ways.
func agree(a, b *agent) {
	a.t.Helper()
	var p, q trust.Peer
	eventually(a.t, a.cfg.Name+" and "+b.cfg.Name+" trust each other", func() bool {
		var there, here bool
		p, there = a.store.Peer(b.key())
		q, here = b.store.Peer(a.key())
		return there && here && p.State == trust.Active && q.State == trust.Active && newest(p).ID == newest(q).ID &&
			p.In.String() == q.Out.String() && p.Out.String() == q.In.String() &&
			len(a.Outgoing())+len(b.Outgoing()) == 0 && len(a.store.Outbox())+len(b.store.Outbox()) == 0
	})
	s, o := newest(p), newest(q)
	if s.Secret != o.Secret || s.Static.Public() != o.RemoteStatic || o.Static.Public() != s.RemoteStatic || s.Initiator == o.Initiator {
		a.t.Fatal("the two sides hold different secrets")
	}
	passes(a, b)
	passes(b, a)
	eventually(a.t, "the pair is final", func() bool {
		p, _ := a.store.Peer(b.key())
		q, _ := b.store.Peer(a.key())
		return p.Next == nil && q.Next == nil && p.Current.ID == s.ID && q.Current.ID == s.ID
	})
}

// passes wants a packet to arrive.
func passes(a, b *agent) {
	a.t.Helper()
	const number = 7777
	for range 30 {
		a.send(b, number, 64)
		if n, err := b.receive(time.Second); err == nil && n == number {
			return
		}
	}
	a.t.Fatalf("no packet of %s reaches %s: %+v", a.cfg.Name, b.cfg.Name, a.Status().Peers)
}

// apart wants neither side to trust the other, and nothing to pass.
func apart(a, b *agent) {
	a.t.Helper()
	for _, x := range [][2]*agent{{a, b}, {b, a}} {
		if p, ok := x[0].store.Peer(x[1].key()); ok && p.State == trust.Active {
			a.t.Fatalf("%s trusts %s", x[0].cfg.Name, x[1].cfg.Name)
		}
	}
	silent(a, b)
}

// silent wants nothing to pass.
func silent(a, b *agent) {
	a.t.Helper()
	for _, x := range [][2]*agent{{a, b}, {b, a}} {
		before := x[1].device.Waiting()
		x[0].send(x[1], 8888, 64)
		pass(2 * time.Second)
		if n := x[1].device.Waiting() - before; n > 0 {
			a.t.Fatalf("%d packets of %s reached %s", n, x[0].cfg.Name, x[1].cfg.Name)
		}
	}
}

// slots are the IDs of the pair states that a holds with b.
func (a *agent) slots(b *agent) (ids [][32]byte) {
	p, ok := a.store.Peer(b.key())
	for _, s := range []*trust.Slot{p.Current, p.Next} {
		if ok && s != nil {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func code(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// The granter is down when the request comes, and the asker when the grant does.
func TestTrustGranterDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		bob.stop()
		alice.asks(bob, RequestOptions{Contact: alice.contactOf(bob)})
		pass(time.Hour)
		alice.stop()
		bob.start()
		bob.approves(alice)
		pass(time.Hour)
		bob.stop()
		alice.start()
		eventually(t, "the grant arrives without the granter", func() bool { return len(alice.slots(bob)) == 1 })
		bob.start()
		agree(alice, bob)
	})
}

// contactOf is the contact of an agent that may be down.
func (a *agent) contactOf(b *agent) string {
	s := b.cfg.Servers[0]
	return ipam.Contact{Addr: b.cfg.Identity.Addr(), Fingerprint: b.key().Fingerprint(), Host: s.Host, Port: s.Port}.String()
}

// mail leaves mail for b, as anybody can who has it, and waits until it was read.
func (w *world) mail(from, b *agent, body []byte) {
	w.t.Helper()
	c, err := relay.Dial(timeout(w.t), from.loop.dialConfig(w.serverRef()))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	fp := b.key().Fingerprint()
	if err := c.Put(timeout(w.t), fp, body); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "the mail is read", func() bool {
		left, err := w.store.Mail(fp, 0, 10)
		return err == nil && len(left) == 0
	})
}

// What was mailed comes again, now and after a revocation: no second question, no second
// pair, and nothing comes back.
func TestTrustReplayedRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		bob.stop()
		alice.asks(bob, RequestOptions{Contact: alice.contactOf(bob)})
		fp := bob.key().Fingerprint()
		var recorded []rendezvous.Mail
		eventually(t, "the request is at the server", func() bool {
			recorded, _ = w.store.Mail(fp, 0, 10)
			return len(recorded) == 1
		})
		again := func() {
			for range 3 {
				w.mail(alice, bob, recorded[0].Body)
			}
		}
		bob.start()
		bob.waiting(1)
		again()
		bob.approves(alice)
		agree(alice, bob)
		was := bob.slots(alice)
		again()
		agree(alice, bob)
		if now := bob.slots(alice); len(now) != 1 || now[0] != was[0] || len(bob.Pending()) != 0 {
			t.Errorf("a replay made a new pair: %x, was %x", now, was)
		}
		if err := bob.Revoke(timeout(t), "alice"); err != nil {
			t.Fatal(err)
		}
		again()
		if len(bob.Pending()) != 0 {
			t.Error("a replay asks again after the revocation")
		}
		apart(alice, bob)
	})
}

// Both ask at the same moment, within what both offer: nobody needs to approve.
func TestTrustCrossingRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		alice.asks(bob, RequestOptions{})
		bob.asks(alice, RequestOptions{})
		agree(alice, bob)
		if n := len(alice.Pending()) + len(bob.Pending()); n != 0 {
			t.Errorf("%d requests wait", n)
		}
	})
}

// Beyond what is offered people decide, both at once.
func TestTrustCrossingGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		alice.asks(bob, RequestOptions{Ports: "7,80", Offer: "7"})
		bob.asks(alice, RequestOptions{Ports: "7,443", Offer: "7"})
		bob.waiting(1)
		alice.waiting(1)
		alice.approves(bob)
		bob.approves(alice)
		agree(alice, bob)
		if p := alice.peer("bob"); p.In != "7,443" || p.Out != "7,80" {
			t.Errorf("alice has in %s, out %s", p.In, p.Out)
		}
	})
}

// Both begin a tunnel at the same moment: both packets arrive, and both end up
// sending on one session.
func TestTrustBothInitiate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		alice.asks(bob, RequestOptions{})
		bob.approves(alice)
		eventually(t, "granted", func() bool { return len(alice.slots(bob)) == 1 })
		pass(5 * time.Minute) // no session is left
		alice.send(bob, 1, 64)
		bob.send(alice, 2, 64)
		for _, x := range []struct {
			a    *agent
			want uint32
		}{{alice, 2}, {bob, 1}} {
			if n, err := x.a.receive(5 * time.Second); err != nil || n != x.want {
				t.Errorf("%s received %d, %v", x.a.cfg.Name, n, err)
			}
		}
		pass(2 * retireAfter)
		passes(alice, bob)
		passes(bob, alice)
		if a, b := alice.session(bob), bob.session(alice); a.Local() != b.Remote() || a.Remote() != b.Local() {
			t.Error("each sends on a session of its own")
		}
		agree(alice, bob)
	})
}

// The key is installed anew without its store: its address is the same, its trust
// is asked for again, and the other side sees what happened.
func TestTrustReinstalledKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		was := bob.slots(alice)[0]
		alice.stop()
		alice.dir = t.TempDir()
		alice.cfg.StateDir = alice.dir
		alice.start()
		alice.registered()
		pass(10 * time.Second)
		if s := alice.Status(); s.State != "ready" || len(s.Peers) != 0 {
			t.Errorf("a key without its store: %s, %d peers", s.State, len(s.Peers))
		}
		alice.asks(bob, RequestOptions{})
		bob.waiting(1)
		if r := bob.Pending()[0]; !r.StateLost {
			t.Errorf("bob is not told that the state is lost: %+v", r)
		}
		bob.approves(alice)
		agree(alice, bob)
		if bob.slots(alice)[0] == was {
			t.Error("the old pair state is in use again")
		}
	})
}

// The pair gets new secrets while packets flow: none is lost, and the old ones go.
func TestTrustRenewedUnderTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := friends(t)
		defer w.close()
		alice.pathTo("bob", "direct")
		was := alice.slots(bob)[0]
		done := make(chan result)
		go func() { done <- stream(alice, bob, 15000, 20*time.Millisecond) }()
		pass(time.Second)
		alice.asks(bob, RequestOptions{Contact: "bob", Reason: "renew"})
		if r := <-done; r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
		agree(alice, bob)
		for _, x := range [][2]*agent{{alice, bob}, {bob, alice}} {
			if s := x[0].slots(x[1]); len(s) != 1 || s[0] == was {
				t.Errorf("%s holds %d pair states, the first one: %v", x[0].cfg.Name, len(s), s[0] == was)
			}
		}
	})
}

// Two keys suggest one name: nothing is decided by who came first.
func TestTrustPetnameClash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		mallory := w.agentWith("mallory", func(c *Config) { c.Name = "alice" })
		alice.asks(bob, RequestOptions{})
		mallory.asks(bob, RequestOptions{})
		bob.waiting(2)
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: "alice"}); code(err) != CodeConflict {
			t.Errorf("approved by an ambiguous name: %v", err)
		}
		fp := alice.ID().Fingerprint
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: fp}); code(err) != CodeConflict {
			t.Errorf("a claimed name was given without a word: %v", err)
		}
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: fp, As: "alice"}); err != nil {
			t.Fatal(err)
		}
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: mallory.ID().Fingerprint}); code(err) != CodeConflict {
			t.Errorf("a second alice: %v", err)
		}
		agree(alice, bob)
		apart(mallory, bob)
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: mallory.ID().Fingerprint, As: "other"}); err != nil {
			t.Fatal(err)
		}
		agree(mallory, bob)
		if p := bob.peer("alice"); p.Fingerprint != fp || bob.peer("other").Fingerprint != mallory.ID().Fingerprint {
			t.Errorf("%+v", bob.Peers())
		}
	})
}

// A state directory without its sealing key is not a restored backup, but mail sealed to
// the old key is lost: what is asked again arrives under the new card.
func TestTrustSealKeyLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := pair(t)
		defer w.close()
		bob.stop()
		alice.asks(bob, RequestOptions{Contact: alice.contactOf(bob)})
		eventually(t, "the request is at the server", func() bool { return len(alice.store.Outbox()) == 0 })
		if err := os.Remove(filepath.Join(bob.dir, sealFile)); err != nil {
			t.Fatal(err)
		}
		bob.start()
		bob.registered()
		pass(time.Minute)
		if n := len(bob.Pending()); n != 0 {
			t.Fatalf("%d requests were opened without the key", n)
		}
		alice.asks(bob, RequestOptions{})
		bob.approves(alice)
		agree(alice, bob)
	})
}
