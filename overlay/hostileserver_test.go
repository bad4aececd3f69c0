package overlay

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/rendezvous"
)

// An evilStore makes a rendezvous server that lies: it is in the place where the
// server keeps what it was given.
type evilStore struct {
	rendezvous.Store

	mu       sync.Mutex
	swap     map[crypto.Fingerprint]crypto.Fingerprint // whose card is shown for whose
	first    map[crypto.Fingerprint][]byte             // the first card of each
	old      bool                                      // show that
	withhold bool                                      // no mail
	replay   bool                                      // all mail there ever was, newest first, under new numbers
	endless  bool                                      // garbage without end
	all      map[crypto.Fingerprint][]rendezvous.Mail
	next     uint64
	served   int
}

func newEvilStore() *evilStore {
	return &evilStore{
		Store: rendezvous.NewMemoryStore(), swap: map[crypto.Fingerprint]crypto.Fingerprint{},
		first: map[crypto.Fingerprint][]byte{}, all: map[crypto.Fingerprint][]rendezvous.Mail{}, next: 1 << 20,
	}
}

// set changes how it lies.
func (e *evilStore) set(f func()) { e.mu.Lock(); defer e.mu.Unlock(); f() }

func (e *evilStore) Register(a rendezvous.Agent) error {
	e.set(func() {
		if fp := a.Key.Fingerprint(); e.first[fp] == nil {
			e.first[fp] = a.Card
		}
	})
	return e.Store.Register(a)
}

func (e *evilStore) Agent(fp crypto.Fingerprint) (rendezvous.Agent, error) {
	a, err := e.Store.Agent(fp)
	e.mu.Lock()
	defer e.mu.Unlock()
	if other, ok := e.swap[fp]; ok && err == nil {
		b, err := e.Store.Agent(other)
		a.Card = b.Card
		return a, err
	}
	if e.old && err == nil {
		a.Card = e.first[fp]
	}
	return a, err
}

func (e *evilStore) Put(to crypto.Fingerprint, m rendezvous.Mail, limit int) (uint64, error) {
	e.set(func() { e.all[to] = append(e.all[to], m) })
	return e.Store.Put(to, m, limit)
}

func (e *evilStore) Mail(of crypto.Fingerprint, after uint64, n int) ([]rendezvous.Mail, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.withhold:
		return nil, nil
	case e.endless:
		var list []rendezvous.Mail
		for range n {
			e.next++
			e.served++
			list = append(list, rendezvous.Mail{ID: e.next, Body: make([]byte, 2000)})
		}
		return list, nil
	case e.replay && after == 0:
		list := slices.Clone(e.all[of])
		slices.Reverse(list)
		for i := range list {
			e.next++
			list[i].ID = e.next
		}
		e.served += len(list)
		return list[:min(n, len(list))], nil
	case e.replay:
		return nil, nil
	}
	return e.Store.Mail(of, after, n)
}

// remind has the server tell an agent of mail, as if there were some.
func (e *evilStore) remind(t *testing.T, a *agent) {
	t.Helper()
	n := 0
	e.set(func() { n = e.served })
	a.stop()
	a.start()
	a.registered()
	eventually(t, a.cfg.Name+" fetches mail", func() bool { m := 0; e.set(func() { m = e.served }); return m > n })
	pass(2 * time.Second)
}

// TestHostileServer: a rendezvous server that swaps cards, shows old ones,
// withholds, replays and reorders mail, or never comes to its end, brings
// nothing about but delay, and whoever asks is told.
func TestHostileServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		evil := newEvilStore()
		w.stop()
		w.store = evil
		w.startServer()
		defer w.close()
		alice, bob, mallory := w.agent("alice", natlab.None), w.agent("bob", natlab.None), w.agent("mallory", natlab.None)
		for _, a := range w.agents {
			a.registered()
		}
		ask := func() error {
			_, err := alice.Request(w.ctx(30*time.Second), RequestOptions{Contact: bob.ID().Contact, Reason: "test", Ports: "7", Offer: "7"})
			return err
		}
		print := func(a *agent) crypto.Fingerprint { return a.cfg.Identity.Key.Public().Fingerprint() }

		// The card of another for that of bob: whoever asked is told, and nothing was sent.
		evil.set(func() { evil.swap[print(bob)] = print(mallory) })
		if e := new(Error); !errors.As(ask(), &e) || e.Code != CodeDenied || !strings.Contains(e.Hint, "do not trust this server") {
			t.Errorf("a swapped card: %v", e)
		}
		pass(5 * time.Second)
		if n := len(alice.Pending()) + len(mallory.Pending()) + len(bob.Pending()); n != 0 {
			t.Errorf("%d requests after a swapped card", n)
		}
		evil.set(func() { clear(evil.swap) })

		// An old card leads to the same agent; and mail is only late.
		bob.stop()
		bob.cfg.Servers = append(bob.cfg.Servers, crypto.Server{Host: "192.0.2.99", Port: 3478, Key: w.key.Public()})
		bob.start()
		bob.registered()
		evil.set(func() { evil.old, evil.withhold = true, true })
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if len(bob.Pending()) != 0 {
			t.Fatal("mail was not withheld")
		}
		evil.set(func() { evil.withhold = false })
		bob.stop()
		bob.start()
		eventually(t, "the request arrives", func() bool { return len(bob.Pending()) == 1 })
		if _, err := bob.Approve(w.ctx(time.Minute), ApproveOptions{Peer: "alice"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the grant arrives", func() bool { return alice.peer("bob").Trust == "active" })
		alice.pathTo("bob", "direct")

		// Garbage without end is cut short, and what is true comes through afterwards.
		evil.set(func() { evil.endless = true })
		evil.remind(t, bob)
		evil.set(func() {
			if evil.endless = false; evil.served > 20_000 {
				t.Errorf("bob took %d items", evil.served)
			}
		})
		alice.pathTo("bob", "direct")

		// The revocation is withheld: it is in force all the same.
		evil.set(func() { evil.withhold = true })
		if err := bob.Revoke(w.ctx(time.Minute), "alice"); err != nil {
			t.Fatal(err)
		}
		if ctx := w.ctx(3 * time.Second); func() bool { _, err := alice.Ping(ctx, "bob", 0); return err == nil }() {
			t.Error("alice reaches bob after the revocation")
		}
		evil.set(func() { evil.withhold = false })
		pass(10 * time.Second)

		// All that was ever sent, backwards, again and again: nothing comes back.
		evil.set(func() { evil.replay = true })
		for range 3 {
			evil.remind(t, bob)
			evil.remind(t, alice)
		}
		if p, q := alice.peer("bob"), bob.peer("alice"); p.Trust != "" || q.Trust != "" {
			t.Errorf("after replays alice has %+v, bob %+v", p, q)
		}
		if n := len(bob.Pending()); n != 0 {
			t.Errorf("%d requests wait after replays", n)
		}
		// And they can agree anew.
		evil.set(func() { evil.replay, evil.old = false, false })
		w.befriend(alice, bob, "7", "7")
		alice.pathTo("bob", "direct")
	})
}
