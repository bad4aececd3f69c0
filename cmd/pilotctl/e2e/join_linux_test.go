package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// invite makes a token on an agent.
func invite(t *testing.T, a *agent, ports, ttl string) string {
	t.Helper()
	return answer[struct{ Token string }](t, a, "trust", "invite", "--ports", ports, "--ttl", ttl).Token
}

// TestInvitations: one paste on a fresh machine makes an agent that may do what
// the token says; a token works once, and in its time.
func TestInvitations(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	bob := l.agent(t, "b1", "bob")
	bob.up(t, s)
	l.website(t, "b1", "[::]:8080")
	token, late := invite(t, bob, "8080", "1h"), invite(t, bob, "8080", "1s")
	made := time.Now()

	dave := l.machine(t, "a1", "dave")
	join := dave.command(t.Context(), "pilotctl", "join", "-", "--name", "dave", "--wait", "20s")
	join.Stdin = strings.NewReader(token + "\n")
	o := finish(t, join)
	t.Log(o)
	if o.status != 0 || strings.Contains(o.String(), token) {
		t.Fatalf("exit status %d", o.status)
	}
	within(t, 10*time.Second, "dave knows bob", func() bool { return dave.peer(t, "bob").Trust == "active" })
	if o := dave.run(t, "curl", "-sS", "-m", "10", bobURL); o.stdout != page {
		t.Error(o)
	}
	if p := bob.peer(t, "dave"); p.In != "8080" {
		t.Errorf("bob granted %q", p.In)
	}

	t.Run("used", func(t *testing.T) {
		carol := l.agent(t, "a2", "carol")
		carol.up(t, s)
		o := carol.run(t, "pilotctl", "trust", "accept", token, "--wait", "3s")
		wantRefusal(t, o, 5, "hint: a token works once")
		if len(carol.status(t).Peers) > 0 || slices.ContainsFunc(bob.status(t).Peers, func(p overlay.Peer) bool { return p.Name == "carol" }) {
			t.Error("the token worked twice")
		}
		log, err := os.ReadFile(filepath.Join(bob.state, "daemon.log"))
		for _, text := range []string{"invite used again", "peer=" + carol.id(t).Fingerprint, "by " + dave.id(t).Fingerprint} {
			if err != nil || !strings.Contains(string(log), text) {
				t.Errorf("bob's log does not say %q, %v: %s", text, err, log)
			}
		}
		carol.pilot(t, "down")
	})
	t.Run("expired", func(t *testing.T) {
		mallory := l.agent(t, "a2", "mallory")
		mallory.up(t, s)
		<-time.After(time.Until(made.Add(1500 * time.Millisecond)))
		mallory.refused(t, 5, []string{"expired", "hint: ", "new"}, "trust", "accept", late)
	})
}
