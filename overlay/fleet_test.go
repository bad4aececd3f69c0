package overlay

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/natlab"
)

// fleetSize is how many agents testdata/fleet has addresses for.
const fleetSize = 50

// fleet returns identities whose keys follow from their numbers. The counters are
// committed, since searching them takes minutes.
func fleet(t testing.TB) []ipam.Identity {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "fleet"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []ipam.Identity
	for lines := bufio.NewScanner(f); lines.Scan(); {
		id := ipam.Identity{Key: crypto.NewPrivateKey(sha256.Sum256(fmt.Appendf(nil, "pilot fleet %d", len(list))))}
		var text string
		if _, err := fmt.Sscan(lines.Text(), &id.Counter, &text); err != nil {
			t.Fatal(err)
		}
		addr, err := ipam.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		id.Node = addr.Node
		list = append(list, id)
	}
	if len(list) != fleetSize {
		t.Fatalf("%d identities, want %d", len(list), fleetSize)
	}
	return list
}

// TestFleet: 50 agents (6 unless PILOT_LONG=1) that have nothing but one token come at the same moment. Each is
// granted what the token says, no one approves anything, and one call ends it for all.
func TestFleet(t *testing.T) {
	ids := fleet(t)
	if os.Getenv("PILOT_LONG") != "1" {
		ids = ids[:6]
	}
	size := len(ids)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		bob := w.agent("bob", natlab.Linux)
		bob.registered()
		token, err := bob.Invite(w.ctx(time.Minute), InviteOptions{Ports: "7", TTL: time.Hour, Uses: size, Name: "worker"})
		if err != nil {
			t.Fatalf("invite: %+v", err)
		}
		var workers []*agent
		for i, id := range ids {
			workers = append(workers, w.worker(i, id))
		}
		begin := time.Now()
		for _, a := range workers {
			if _, err := a.Accept(w.ctx(time.Minute), token, "", ""); err != nil {
				t.Fatalf("%s accepts: %+v", a.cfg.Name, err)
			}
		}
		for _, a := range workers {
			if _, err := a.Wait(w.ctx(time.Minute), bob.ID().Fingerprint); err != nil {
				t.Fatalf("%s has no grant: %+v", a.cfg.Name, err)
			}
		}
		t.Logf("%d agents trusted within %v", size, time.Since(begin))
		if pending, peers := bob.Pending(), bob.Peers(); len(pending) > 0 || len(peers) != size {
			t.Fatalf("%d requests wait, %d peers", len(pending), len(peers))
		}
		names := map[string]bool{}
		for _, p := range bob.Peers() {
			names[p.Name] = p.In == "7"
		}
		for i := range size {
			if !names[fmt.Sprintf("worker-%d", i+1)] {
				t.Errorf("no worker-%d with port 7: %v", i+1, names)
			}
		}
		last := workers[size-1]
		if _, err := last.Ping(w.ctx(10*time.Second), "bob", 0); err != nil {
			t.Errorf("ping: %v", err)
		}

		// One more does not fit.
		late := w.agent("carol", natlab.Linux)
		late.registered()
		if _, err := late.Accept(w.ctx(time.Minute), token, "", ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "carol's request waits", func() bool { return len(bob.Pending()) == 1 })

		list := bob.Invites()
		if len(list) != 1 || list[0].State != "used" || len(list[0].Used) != size {
			t.Fatalf("invites: %+v", list)
		}
		if _, err := bob.EndInvite(w.ctx(time.Minute), EndInviteOptions{ID: list[0].ID}); err != nil {
			t.Fatalf("end: %+v", err)
		}
		if peers := bob.Peers(); len(peers) > 0 {
			t.Errorf("%d peers are left", len(peers))
		}
		if slices.ContainsFunc(bob.Invites()[0].Used, func(u InviteUse) bool { return u.Trusted }) {
			t.Error("somebody is trusted through an invitation that has ended")
		}
		eventually(t, "the last worker is told", func() bool { return len(last.Peers()) == 0 })
	})
}

// worker starts an agent with a public address of its own.
func (w *world) worker(i int, id ipam.Identity) *agent {
	a := &agent{t: w.t, router: w.net.NAT(natlab.Linux, netip.AddrFrom4([4]byte{198, 18, 0, byte(1 + i)})), dir: w.t.TempDir()}
	a.host = a.router.Host(fmt.Sprintf("worker%d", i))
	a.cfg = Config{
		StateDir: a.dir, Name: "worker", Identity: id, Servers: []crypto.Server{w.serverRef()},
		Underlay: labUnderlay{a.host}, Clock: labClock{time.Now()}, Logger: testLogger(w.t, fmt.Sprintf("worker%d", i)), Version: "test",
	}
	a.start()
	w.agents = append(w.agents, a)
	return a
}

// TestWithdraw: an agent that takes its claim back is found by nobody, and is
// again once it runs again.
func TestWithdraw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		contact := alice.ID().Contact
		gone, err := alice.Withdraw(w.ctx(time.Minute))
		if err != nil || len(gone) != 1 || !gone[0].Gone || gone[0].Error != "" {
			t.Fatalf("%+v, %v", gone, err)
		}
		carol := w.agent("carol", natlab.Linux)
		carol.registered()
		ask := func() error {
			_, err := carol.Request(w.ctx(time.Minute), RequestOptions{Contact: contact, Reason: "test"})
			return err
		}
		if err := ask(); err == nil || publicError(err).Code != CodeNotFound {
			t.Fatalf("asked an agent that is gone: %v", err)
		}
		pass(time.Minute) // it does not come back by itself
		if agents, _, _ := w.store.Count(); agents != 2 || alice.ID().Claimed {
			t.Errorf("%d agents, claimed %t", agents, alice.ID().Claimed)
		}
		alice.stop()
		alice.start()
		alice.registered()
		if err := ask(); err != nil {
			t.Errorf("asked an agent that is back: %v", err)
		}
		bob.pathTo("alice", "direct")

		// A server that is out of reach is named, in time.
		w.stop()
		w.stop = func() {}
		begin := time.Now()
		gone, err = alice.Withdraw(w.ctx(time.Minute))
		if err != nil || len(gone) != 1 || gone[0].Gone || gone[0].Error == "" || time.Since(begin) > withdrawPatience+time.Second {
			t.Errorf("%+v, %v after %v", gone, err, time.Since(begin))
		}
	})
}
