package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust"
)

// copyState copies the files of a state directory; the agent must be stopped.
func copyState(t testing.TB, from, to string) {
	t.Helper()
	for _, name := range []string{trust.StoreFile, trust.RevocationFile, sealFile} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// backup copies the agent's state; restore puts the copy in the place of what came since.
func (a *agent) backup() (restore func()) {
	a.t.Helper()
	dir := a.t.TempDir()
	a.stop()
	copyState(a.t, a.dir, dir)
	a.start()
	return func() {
		a.stop()
		copyState(a.t, dir, a.dir)
		a.start()
	}
}

// suspended waits until the agent says so, and that its peers are out.
func (a *agent) suspended() Suspension {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" is suspended", func() bool { return a.Status().State == "suspended" })
	s := a.Status()
	if s.Suspended == nil || s.Suspended.Told <= s.Suspended.Here || s.Suspended.Peers != len(s.Peers) {
		a.t.Errorf("%+v with %d peers", s.Suspended, len(s.Peers))
	}
	for _, p := range s.Peers {
		if p.Trust != "suspended" || p.Path != "none" {
			a.t.Errorf("%+v", p)
		}
	}
	return *s.Suspended
}

// The state is copied, a peer revoked, and the copy put back: the home server shows
// that it is old, and the revoked peer stays out until a person confirms.
func TestRestoredBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		alice.pathTo("bob", "direct")
		restore := bob.backup()
		bob.registered()
		if err := bob.Revoke(w.ctx(5*time.Second), "alice"); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		alice.stop() // and keeps her secrets, as a hostile peer would
		restore()
		alice.start()
		s := bob.suspended()
		if s.By != w.serverRef().HostPort() {
			t.Errorf("caught by %q", s.By)
		}
		before := bob.device.Waiting()
		for range 20 {
			alice.send(bob, 1, 64)
			pass(100 * time.Millisecond)
		}
		if n := bob.device.Waiting(); n != before {
			t.Errorf("%d packets of the revoked peer came through", n-before)
		}
		var e *Error
		_, err := bob.Request(w.ctx(5*time.Second), RequestOptions{Contact: "alice", Reason: "again"})
		if !errors.As(err, &e) || e.Code != CodeConflict || e.Hint != suspendedHint {
			t.Errorf("a request while suspended: %+v", err)
		}

		// It outlives a restart, and ends when somebody who has looked says so.
		bob.stop()
		bob.start()
		bob.suspended()
		if err := bob.Revoke(w.ctx(5*time.Second), "alice"); err != nil {
			t.Fatal(err)
		}
		if peers, err := bob.Confirm(w.ctx(5 * time.Second)); err != nil || len(peers) != 0 {
			t.Fatalf("%v, %v", peers, err)
		}
		bob.registered()
		pass(5 * time.Second)
		if s := bob.Status(); s.State != "ready" || s.Suspended != nil {
			t.Errorf("after confirm: %s, %+v", s.State, s.Suspended)
		}
		if _, err := bob.Confirm(w.ctx(time.Second)); !errors.As(err, &e) || e.Code != CodeNotFound {
			t.Errorf("confirmed twice: %v", err)
		}
	})
}

// The server has forgotten everything; the peer has not.
func TestRestoredBackupShownByPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		carol := w.agent("carol", natlab.Linux)
		w.befriend(carol, bob, "7", "7")
		restore := bob.backup()
		alice.pathTo("bob", "direct")
		if err := bob.Revoke(w.ctx(5*time.Second), "carol"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		w.stop()
		w.store = rendezvous.NewMemoryStore()
		w.startServer()
		restore()
		eventually(t, "alice shows what she kept", func() bool {
			alice.send(bob, 1, 64)
			return bob.Status().State == "suspended"
		})
		if s := bob.suspended(); s.By != "alice" {
			t.Errorf("caught by %q", s.By)
		}
		if _, err := bob.Confirm(w.ctx(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		alice.pathTo("bob", "direct")
		pass(time.Minute)
		if s := bob.Status(); s.State != "ready" || len(s.Peers) != 2 {
			t.Errorf("after confirm: %s, %d peers", s.State, len(s.Peers))
		}
	})
}
