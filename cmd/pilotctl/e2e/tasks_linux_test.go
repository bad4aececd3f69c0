package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/services/tasks"
)

// TestTasks: tasks as pilotctl and curl see them, by name, with a handler of
// another user, a daemon that is killed while one is at work, and a peer without
// the port.
func TestTasks(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "7,1003")
	trust(t, carol, bob, "7")
	set := func(script string) {
		t.Helper()
		bob.pilot(t, "task", "handler", "set", "--exec", "--", "/bin/sh", "-c", script)
	}

	t.Run("no handler", func(t *testing.T) {
		alice.refused(t, 8, []string{"rejected", "no handler"}, "task", "send", "bob", "hello")
	})
	t.Run("outside the scope", func(t *testing.T) {
		carol.refused(t, 5, []string{"does not let this agent reach"}, "task", "send", "bob", "hello")
		if o := carol.run(t, "curl", "-sS", "-m", "3", "http://bob.pilot.internal:1003/.well-known/agent-card.json"); o.status == 0 {
			t.Errorf("%s", o)
		}
	})
	t.Run("command", func(t *testing.T) {
		set(`echo "$PILOT_PEER_NAME wrote: $(cat)"; echo private >&2`)
		hostile := `$(touch /tmp/x); "quotes" ` + "`id`"
		o := alice.run(t, "pilotctl", "task", "send", "bob", hostile)
		if o.status != 0 || o.stdout != "alice wrote: "+hostile+"\n" || !strings.Contains(o.stderr, "working") {
			t.Errorf("%s", o)
		}
		list := answer[[]tasks.Entry](t, bob, "task", "list")
		if len(list) != 1 || list[0].Peer != "alice" || list[0].State != "completed" || list[0].Request != hostile {
			t.Fatalf("%+v", list)
		}
		if e := answer[tasks.Entry](t, bob, "task", "get", list[0].ID); e.Log != "private\n" {
			t.Errorf("%+v", e)
		}
		if e := answer[tasks.Entry](t, alice, "task", "get", "bob", list[0].ID); e.Log != "" || e.Text != "alice wrote: "+hostile+"\n" {
			t.Errorf("%+v", e)
		}
		set(`exit 4`)
		alice.refused(t, 9, []string{"failed", "exit status 4"}, "task", "send", "bob", "hello")
	})
	t.Run("curl", func(t *testing.T) {
		set(`tr a-z A-Z`)
		o := alice.run(t, "curl", "-sS", "-m", "20", "--json", `{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"kind":"message","messageId":"m","role":"user","parts":[{"kind":"text","text":"hello"}]}}}`, "http://bob.pilot.internal:1003/")
		if !strings.Contains(o.stdout, `"text":"HELLO"`) || !strings.Contains(o.stdout, `"state":"completed"`) {
			t.Errorf("0.3: %s", o)
		}
		o = alice.run(t, "curl", "-sSN", "-m", "20", "--json", `{"jsonrpc":"2.0","id":1,"method":"SendStreamingMessage","params":{"message":{"messageId":"m","role":"ROLE_USER","parts":[{"text":"hello"}]}}}`, "http://bob.pilot.internal:1003/")
		if !strings.Contains(o.stdout, `"text":"HELLO"`) || !strings.Contains(o.stdout, "data: ") || !strings.Contains(o.stdout, "TASK_STATE_COMPLETED") {
			t.Errorf("1.0: %s", o)
		}
		o = alice.run(t, "curl", "-sS", "-m", "20", "http://bob.pilot.internal:1003/.well-known/agent-card.json")
		if strings.Count(o.stdout, `"http://bob.pilot.internal:1003/"`) < 2 || !strings.Contains(o.stdout, `"name": "bob"`) {
			t.Errorf("%s", o)
		}
	})
	t.Run("another user", func(t *testing.T) { anotherUser(t, alice, bob) })
	t.Run("killed at work", func(t *testing.T) {
		mark := filepath.Join(l.dir, "handler.pid")
		set(`echo $$ > ` + mark + `; sleep 300`)
		e := answer[tasks.Entry](t, alice, "task", "send", "bob", "long work", "--no-wait")
		if e.State != "working" {
			t.Fatalf("%+v", e)
		}
		within(t, 10*time.Second, "the handler runs", func() bool { return read(mark) != "" })
		pid, err := strconv.Atoi(read(mark))
		if err != nil {
			t.Fatal(err)
		}
		bob.kill(t)
		within(t, 10*time.Second, "the handler died with the daemon", func() bool { return syscall.Kill(pid, 0) != nil })
		bob.up(t, s)
		within(t, 30*time.Second, "the task is marked", func() bool {
			o := alice.run(t, "pilotctl", "task", "get", "bob", e.ID, "--json")
			return strings.Contains(o.stdout, `"state":"failed"`) && strings.Contains(o.stdout, "interrupted")
		})
		if h := bob.pilot(t, "task", "handler", "show"); !strings.Contains(h, "sleep 300") {
			t.Errorf("the handler is gone: %s", h)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		set(`sleep 300`)
		e := answer[tasks.Entry](t, alice, "task", "send", "bob", "long work", "--no-wait")
		if out := alice.pilot(t, "task", "cancel", "bob", e.ID); !strings.Contains(out, "canceled") {
			t.Errorf("%s", out)
		}
		alice.refused(t, 9, []string{"canceled"}, "task", "watch", "bob", e.ID)
	})
}

// anotherUser has nobody set a handler, which then runs as nobody though the
// daemon is root's.
func anotherUser(t *testing.T, alice, bob *agent) {
	const nobody = 65534
	for path, mode := range map[string]os.FileMode{bob.state: 0o711, filepath.Join(bob.state, "pilot.sock"): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(bob.state, 0o700)
	id := strconv.Itoa(nobody)
	o := bob.run(t, "setpriv", "--reuid", id, "--regid", id, "--clear-groups", "pilotctl", "--socket", filepath.Join(bob.state, "pilot.sock"), "task", "handler", "set", "--exec", "--", "/bin/sh", "-c", "id -u; id -g")
	if o.status != 0 || !strings.Contains(o.stdout, id) {
		t.Fatalf("%s", o)
	}
	if out := alice.pilot(t, "task", "send", "bob", "who are you"); strings.Join(strings.Fields(out), " ") != id+" "+id {
		t.Errorf("the handler ran as %q", out)
	}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
