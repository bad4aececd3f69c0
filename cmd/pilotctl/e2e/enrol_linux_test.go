package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEphemeral: an agent in a container that has nothing but a token in its
// environment is of use by itself, shows when, leaves nothing on the disk, and when it
// ends its server knows nothing of it.
func TestEphemeral(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	bob := l.agent(t, "b1", "bob")
	bob.up(t, s)
	l.website(t, "b1", "[::]:8080")
	made := answer[struct{ Token, ID string }](t, bob, "trust", "invite", "--ports", "8080", "--ttl", "1h", "--uses", "2", "--name", "worker")

	dave := l.machine(t, "a1", "dave")
	if err := os.Mkdir(dave.state, 0o700); err != nil { // sockets only will lie in it
		t.Fatal(err)
	}
	run := dave.command(t.Context(), "pilotctl", "daemon", "run", "--ephemeral", "--health", "8086")
	run.Env = append(run.Env, "PILOT_INVITE="+made.Token)
	log := &strings.Builder{}
	run.Stderr = log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()

	within(t, 30*time.Second, "dave is ready", func() bool {
		return dave.run(t, "curl", "-sf", "-m", "5", "http://127.0.0.1:8086/readyz").status == 0
	})
	if o := dave.run(t, "curl", "-sf", "-m", "5", "http://127.0.0.1:8086/healthz"); !strings.Contains(o.stdout, `"ok":true`) {
		t.Error(o)
	}
	within(t, 20*time.Second, "dave knows bob", func() bool { return dave.peer(t, "bob").Trust == "active" })
	if o := dave.run(t, "curl", "-sS", "-m", "10", bobURL); o.stdout != page {
		t.Error(o)
	}
	if p := bob.peer(t, "worker-1"); p.In != "8080" {
		t.Errorf("bob granted %q", p.In)
	}
	contact := dave.id(t).Contact
	entries, err := os.ReadDir(dave.state)
	for _, e := range entries {
		if e.Type().IsRegular() && !slices.Contains([]string{".pilot.lock", "pilot.sock.lock"}, e.Name()) {
			info, _ := e.Info()
			if info.Size() > 0 {
				t.Errorf("%s is on the disk", filepath.Join(dave.state, e.Name()))
			}
		}
	}
	if err != nil {
		t.Error(err)
	}

	begin := time.Now()
	dave.pilot(t, "down")
	if err := <-ended; err != nil {
		t.Errorf("the daemon: %v: %s", err, log)
	}
	t.Logf("down after %v", time.Since(begin))
	bob.refused(t, 4, []string{"knows no agent"}, "trust", "request", contact, "--reason", "is it gone?")
	if !strings.Contains(log.String(), "the claim is withdrawn") {
		t.Error(log)
	}
	bob.pilot(t, "trust", "invite", "revoke", made.ID)
	if p := bob.peer(t, "worker-1"); p.Trust == "active" {
		t.Error("worker-1 is still trusted")
	}
}

// TestMove: an agent that was exported is the same on another machine: its peer reaches
// it under the same address and name, and nobody approves anything. Where it came
// from it has to stay down: of two, the one started later wins.
func TestMove(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, old := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	old.up(t, s)
	trust(t, alice, old, "8080")
	file := filepath.Join(l.dir, "bob.pilot")
	with := func(a *agent, passphrase string, args ...string) outcome {
		t.Helper()
		c := a.command(t.Context(), append([]string{"pilotctl", "id"}, args...)...)
		c.Env = append(c.Env, "PILOT_PASSPHRASE="+passphrase)
		return finish(t, c)
	}
	wantRefusal(t, with(old, "correct horse", "export", "--out", file), 7, "pilotctl down")
	old.pilot(t, "down")
	if o := with(old, "correct horse", "export", "--out", file); o.status != 0 {
		t.Fatal(o)
	}

	bob := l.machine(t, "b2", "bob2")
	l.website(t, "b2", "[::]:8080")
	wantRefusal(t, with(bob, "battery staple", "import", file), 8, "wrong passphrase")
	if o := with(bob, "correct horse", "import", file); o.status != 0 {
		t.Fatal(o)
	}
	bob.pilot(t, "up")
	if was, is := old.id(t), bob.id(t); was.Address != is.Address || was.Contact != is.Contact {
		t.Fatalf("%+v has become %+v", was, is)
	}
	within(t, 30*time.Second, "alice reaches bob where he is now", func() bool {
		return alice.run(t, "curl", "-sS", "-m", "5", bobURL).stdout == page
	})
	if requests := bob.status(t).Requests; len(requests) > 0 {
		t.Errorf("to be approved: %+v", requests)
	}

	old.pilot(t, "up")
	within(t, 20*time.Second, "the one that was started first stops", func() bool { return bob.status(t).State == "conflict" })
}
