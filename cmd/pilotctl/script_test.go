package main

import (
	"context"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api/apitest"
)

// The scripts in testdata/script run pilotctl as processes of their own. Only the
// node inside the daemon is another, unless fakeDaemon is unset: what it does is
// in that variable, which "pilotctl up" passes on.
const (
	fakeDaemon   = "PILOT_TEST_DAEMON"
	testIdentity = "PILOT_TEST_IDENTITY"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pilotctl": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		p := &program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, now: time.Now, newKey: quickKey, newNode: openNode, lookup: lookupNames, examine: examineMachine}
		if mode := os.Getenv(fakeDaemon); mode != "" {
			p.newNode = func(c overlay.Config) (node, error) { return newFakeNode(c, mode) }
		}
		os.Exit(p.run(ctx, os.Args))
	}})
}

// quickKey is the key of the identity that all tests use: its address is found
// with the 45th try, that of a new key may need thousands.
func quickKey() (crypto.PrivateKey, error) {
	text, err := os.ReadFile(os.Getenv(testIdentity))
	if err != nil {
		return crypto.PrivateKey{}, err
	}
	id, err := ipam.ParseIdentity(text)
	return id.Key, err
}

// A fakeNode is an agent that carries nothing.
type fakeNode struct {
	*apitest.Agent
	end error
}

func newFakeNode(c overlay.Config, mode string) (node, error) {
	n := &fakeNode{Agent: apitest.New()}
	key := c.Identity.Key.Public()
	n.Me.ID = overlay.ID{Name: c.Name, Address: c.Identity.Addr().String(), ULA: c.Identity.Addr().ULA().String(), Fingerprint: key.Fingerprint().String()}
	n.Me.Servers = nil
	for _, s := range c.Servers {
		n.Me.Contact = ipam.Contact{Addr: c.Identity.Addr(), Fingerprint: key.Fingerprint(), Host: s.Host, Port: s.Port}.String()
		state := overlay.ServerStatus{Server: s.String(), State: "registered", Claimed: true}
		if mode == "alone" {
			state = overlay.ServerStatus{Server: s.String(), State: "connecting", Error: "connection refused"}
		}
		n.Me.Servers = append(n.Me.Servers, state)
	}
	switch mode {
	case "denied":
		return nil, overlay.Errorf(overlay.CodeDenied, "no right to make a network device").WithHint("run it as root")
	case "crash":
		os.Exit(70)
	case "fails":
		n.end = overlay.Errorf(overlay.CodeInternal, "the disk is on fire")
	}
	return n, nil
}

func (n *fakeNode) Run(ctx context.Context) error {
	if n.end != nil {
		return n.end
	}
	<-ctx.Done()
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// The machine's own places, and those of whoever runs the test, stay
			// out of it.
			e.Setenv("PILOT_STATE_DIR", e.WorkDir+"/a")
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // otherwise every process ends a second late
			e.Setenv(testIdentity, e.WorkDir+"/made/identity")
			identity, err := os.ReadFile("../../ipam/testdata/alice.identity")
			if err != nil {
				return err
			}
			if err := os.MkdirAll(e.WorkDir+"/made", 0o700); err != nil {
				return err
			}
			return os.WriteFile(e.WorkDir+"/made/identity", identity, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status, "until": until},
	})
}

// status runs a command and checks its exit status: status 7 pilotctl init.
func status(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want := args[0]
	ts.Check(ts.Exec("sh", append([]string{"-c", `want=$1; shift; "$@"; got=$?; [ $got = $want ] || { echo "exit $got, want $want"; exit 1; }`, "status", want}, args[1:]...)...))
}

// until repeats a command until it succeeds: until pilotctl status --check live.
func until(ts *testscript.TestScript, _ bool, args []string) {
	const limit = 10 * time.Second
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ts.Exec(args[0], args[1:]...) != nil; <-tick.C {
		if time.Since(begin) > limit {
			ts.Fatalf("%v does not succeed", args)
		}
	}
}
