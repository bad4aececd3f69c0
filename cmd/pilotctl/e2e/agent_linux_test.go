package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// An agent is a place for a pilotctl: a host, a state directory and a hosts file.
type agent struct {
	lab   *lab
	host  string
	name  string
	state string
	hosts string
	as    []string // a command that runs the others, with fewer rights; nil: none
	once  sync.Once
	api   *api.Client
}

// machine is a host without an agent yet.
func (l *lab) machine(t *testing.T, host, name string) *agent {
	t.Helper()
	a := &agent{lab: l, host: host, name: name, state: filepath.Join(l.dir, name)}
	a.hosts = a.state + ".hosts"
	if err := os.WriteFile(a.hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// agent is one with an identity of ipam/testdata; it is not up yet.
func (l *lab) agent(t *testing.T, host, name string) *agent {
	t.Helper()
	a := l.machine(t, host, name)
	id, err := os.ReadFile(filepath.Join(root, "ipam", "testdata", name+".identity"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(a.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.state, "identity"), id, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// private is what the shell does in a mount namespace of the command's own,
// before it becomes the command.
const private = `mount --bind "$HOSTS_FILE" /etc/hosts || exit 125; `

// command is a program that will run on the agent's machine.
func (a *agent) command(ctx context.Context, args ...string) *exec.Cmd {
	return a.prepared(ctx, "", args...)
}

// prepared is a command whose mount namespace is changed first.
func (a *agent) prepared(ctx context.Context, mounts string, args ...string) *exec.Cmd {
	c := a.lab.on(ctx, a.host, slices.Concat([]string{"unshare", "-m", "sh", "-c", private + mounts + ` exec "$@"`, "sh"}, a.as, args)...)
	c.Env = append(c.Env, "PILOT_STATE_DIR="+a.state, "PILOT_SERVER_STATE_DIR="+a.state+".server", "HOSTS_FILE="+a.hosts, "HOME="+a.lab.dir)
	return c
}

// An outcome is what came of a command.
type outcome struct {
	stdout, stderr string
	status         int
	took           time.Duration
}

func (o outcome) String() string {
	return strings.TrimSpace(o.stdout + "\n" + o.stderr)
}

func finish(t *testing.T, c *exec.Cmd) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	begin := time.Now()
	err := c.Run()
	o := outcome{stdout: out.String(), stderr: errs.String(), took: time.Since(begin)}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		o.status = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(c.Args, " "), err, o)
	}
	return o
}

// run runs a program on the agent's machine.
func (a *agent) run(t *testing.T, args ...string) outcome {
	t.Helper()
	return finish(t, a.command(t.Context(), args...))
}

// pilot runs pilotctl and fails the test if that fails.
func (a *agent) pilot(t *testing.T, args ...string) string {
	t.Helper()
	o := a.run(t, append([]string{"pilotctl"}, args...)...)
	if o.status != 0 {
		t.Fatalf("%s: pilotctl %s: exit status %d: %s", a.name, strings.Join(args, " "), o.status, o)
	}
	return o.stdout
}

// refused runs pilotctl and wants that exit status, and each text on stderr.
func (a *agent) refused(t *testing.T, status int, texts []string, args ...string) {
	t.Helper()
	wantRefusal(t, finish(t, a.command(t.Context(), append([]string{"pilotctl"}, args...)...)), status, texts...)
}

// wantRefusal checks an exit status, and that stderr has each text.
func wantRefusal(t *testing.T, o outcome, status int, texts ...string) {
	t.Helper()
	if o.status != status {
		t.Errorf("exit status %d, want %d: %s", o.status, status, o)
	}
	for _, text := range texts {
		if !strings.Contains(o.stderr, text) {
			t.Errorf("stderr does not say %q: %s", text, o)
		}
	}
	t.Log(o)
}

// answer decodes the data of a pilotctl call with --json.
func answer[T any](t *testing.T, a *agent, args ...string) T {
	t.Helper()
	var envelope struct {
		Data T `json:"data"`
	}
	out := a.pilot(t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &envelope); err != nil {
		t.Fatalf("%s: pilotctl %s --json: %v: %s", a.name, strings.Join(args, " "), err, out)
	}
	return envelope.Data
}

func (a *agent) status(t *testing.T) overlay.Status {
	t.Helper()
	return answer[overlay.Status](t, a, "status")
}

// peer is what the agent says of another one; the zero value if it knows none.
func (a *agent) peer(t *testing.T, name string) overlay.Peer {
	t.Helper()
	peers := a.status(t).Peers
	i := slices.IndexFunc(peers, func(p overlay.Peer) bool { return p.Name == name })
	if i < 0 {
		return overlay.Peer{}
	}
	return peers[i]
}

func (a *agent) up(t *testing.T, s *server) {
	t.Helper()
	a.pilot(t, "up", "--name", a.name, "--server", s.name)
}

func (a *agent) id(t *testing.T) overlay.ID {
	t.Helper()
	return answer[overlay.ID](t, a, "id")
}

// reach is the address of a port of the agent's, for programs without a resolver.
func (a *agent) reach(t *testing.T, port string) string {
	t.Helper()
	return "[" + a.id(t).ULA + "]:" + port
}

// trust makes a know b and reach those ports there, which are written as status
// writes them, in order.
func trust(t *testing.T, a, b *agent, ports string, more ...string) {
	t.Helper()
	a.pilot(t, append([]string{"trust", "request", b.id(t).Contact, "--reason", "a test", "--ports", ports}, more...)...)
	within(t, 10*time.Second, b.name+" sees the request of "+a.name, func() bool {
		return slices.ContainsFunc(b.status(t).Requests, func(r overlay.Request) bool { return r.Name == a.name && r.Direction == "in" })
	})
	b.pilot(t, "trust", "approve", a.name)
	within(t, 10*time.Second, a.name+" has the grant of "+b.name, func() bool {
		p := a.peer(t, b.name)
		return p.Trust == "active" && p.Out == ports
	})
}

// direct waits until traffic to a peer goes without the server.
func direct(t *testing.T, a, b *agent) {
	t.Helper()
	a.pilot(t, "ping", b.name, "--until-direct", "-i", "100ms", "-c", "200")
}

// daemon is the process that runs the agent; 0 if there is none.
func (a *agent) daemon() int {
	for _, pid := range a.lab.processes(a.host) {
		line, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "cmdline"))
		if err == nil && bytes.Contains(line, []byte("\x00daemon\x00run\x00")) && bytes.Contains(line, []byte("\x00"+a.state+"\x00")) {
			return pid
		}
	}
	return 0
}

// kill ends the daemon as a crash would.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	pid := a.daemon()
	if pid == 0 {
		t.Fatalf("%s does not run", a.name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, a.name+" is killed", func() bool { return a.daemon() == 0 })
}
