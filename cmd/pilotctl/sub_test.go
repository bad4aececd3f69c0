package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/api/apitest"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/events"
)

// An eventLab is alice's pilotctl, with her own broker and bob's; bob is reached
// while bobAt is set.
type eventLab struct {
	*testing.T
	dir   string
	agent *apitest.Agent
	bobAt string
}

// loopback is a services.Network of one listener.
type loopback struct{}

func (loopback) Listen(ctx context.Context, _ uint16) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
}

func (loopback) ListenPacket(context.Context, uint16) (net.PacketConn, error) {
	return nil, errors.New("no datagrams here")
}

func newEventLab(t *testing.T) *eventLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &eventLab{T: t, dir: dir, agent: apitest.New()}
	l.agent.Me.Peers[0].Out = "1002"
	own := l.broker(filepath.Join(dir, "events"), "bob", apitest.BobFingerprint)
	l.bobAt = l.broker(t.TempDir(), "alice", apitest.AliceFingerprint).at
	sockets, err := api.Listen(filepath.Join(dir, "pilot.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(api.Config{Agent: l.agent, Logger: slog.New(slog.DiscardHandler), Stop: func() {},
		Mounts: map[string]http.Handler{events.OwnerPath: own.Owner()}})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.Run(ctx, sockets) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

type eventBroker struct {
	*events.Broker
	at string
}

// broker runs one that takes everybody for that peer.
func (l *eventLab) broker(dir, name, fingerprint string) eventBroker {
	l.Helper()
	fp, err := crypto.ParseFingerprint(fingerprint)
	if err != nil {
		l.Fatal(err)
	}
	peer := services.Peer{Name: name, Fingerprint: fp}
	b, err := events.New(events.Config{Dir: dir, Peer: func(f crypto.Fingerprint) (services.Peer, bool) { return peer, f == fp }})
	if err != nil {
		l.Fatal(err)
	}
	env := services.Env{Network: loopback{}, Whois: func(netip.Addr) (services.Peer, bool) { return peer, true }, Logger: slog.New(slog.DiscardHandler)}
	listener, err := env.Listen(l.Context(), events.Port, nil)
	if err != nil {
		l.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Serve(ctx, listener) }()
	l.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, b.Close()); err != nil {
			l.Error(err)
		}
	})
	return eventBroker{b, listener.Addr().String()}
}

// call runs pilotctl.
func (l *eventLab) call(stdin string, args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	p := &program{
		stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, getenv: noEnvironment, now: time.Now,
		newNode: func(overlay.Config) (node, error) { return nil, errors.New("no node in this test") },
		lookup:  fakeLookup,
		dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if l.bobAt == "" {
				return nil, errors.New("no route to host")
			}
			return new(net.Dialer).DialContext(ctx, network, l.bobAt)
		},
	}
	status = p.run(l.Context(), append([]string{"pilotctl", "--state-dir", l.dir}, args...))
	return out.String(), errs.String(), status
}

// TestEventCommands compares all that a user meets, for people and for programs.
func TestEventCommands(t *testing.T) {
	offline := func(l *eventLab) { l.bobAt = "" }
	for _, c := range []struct {
		name    string
		prepare func(*eventLab)
		stdin   string
		args    []string
	}{
		{"pub_help", nil, "", []string{"pub", "--help"}},
		{"sub_help", nil, "", []string{"sub", "--help"}},
		{"events_help", nil, "", []string{"events", "--help"}},
		{"pub_own", nil, "", []string{"pub", "public/news", "hello"}},
		{"pub_qos0", nil, "", []string{"pub", "public/news", "hello", "--qos", "0"}},
		{"pub_peer", nil, "", []string{"pub", "bob:peer/alice/log", "hello"}},
		{"pub_lines", nil, "a\nb\n\nc", []string{"pub", "bob:peer/alice/log", "-", "--lines"}},
		{"pub_elsewhere", nil, "", []string{"pub", "bob:public/log", "hello"}},
		{"pub_elsewhere_lines", nil, "a\nb\n", []string{"pub", "bob:public/log", "-", "--lines"}},
		{"pub_wildcard", nil, "", []string{"pub", "a/#", "hello"}},
		{"pub_system", nil, "", []string{"pub", "$SYS/x", "hello"}},
		{"pub_no_payload", nil, "", []string{"pub", "public/news"}},
		{"pub_qos2", nil, "", []string{"pub", "public/news", "x", "--qos", "2"}},
		{"pub_too_long", nil, strings.Repeat("x", events.MaxPayload+1), []string{"pub", "public/news", "-"}},
		{"pub_nobody", nil, "", []string{"pub", "dave:peer/alice/x", "x"}},
		{"pub_no_scope", func(l *eventLab) { l.agent.Me.Peers[0].Out = "7" }, "", []string{"pub", "bob:peer/alice/x", "x"}},
		{"pub_offline", offline, "", []string{"pub", "bob:peer/alice/x", "x", "--patience", "1ms"}},
		{"sub_offline", offline, "", []string{"sub", "bob:public/#"}},
		{"sub_refused", nil, "", []string{"sub", "bob:#"}},
		{"sub_bad_filter", nil, "", []string{"sub", "bob:a/#/b"}},
		{"sub_two_peers", nil, "", []string{"sub", "bob:public/#", "carol:public/#"}},
		{"sub_silence", nil, "", []string{"sub", "bob:public/#", "--wait", "10ms"}},
		{"sub_forget_what", nil, "", []string{"sub", "public/#", "--forget"}},
		{"sub_forget", nil, "", []string{"sub", "public/#", "--session", "s", "--forget"}},
		{"sub_retained", func(l *eventLab) { l.call("", "pub", "public/state", "on", "--retain", "--type", "text/plain") }, "", []string{"sub", "public/#", "-n", "1"}},
		{"sub_hostile", func(l *eventLab) { l.call("a\x1b[31m\u202e\nb", "pub", "x", "-", "--retain") }, "", []string{"sub", "x", "-n", "1"}},
		{"sub_json", func(l *eventLab) { l.call("", "pub", "x", `{"n":1}`, "--retain", "--type", "application/json") }, "", []string{"sub", "x", "-n", "1"}},
		{"events", nil, "", []string{"events"}},
		{"events_allow", nil, "", []string{"events", "--allow", "bob=build/#", "--allow", "all=news/#", "--forbid", "all=public/#"}},
		{"events_bad_filter", nil, "", []string{"events", "--allow", "bob=$SYS/#"}},
		{"events_bad_word", nil, "", []string{"events", "--allow", "bob"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got strings.Builder
			for _, format := range []string{"--json=false", "--json"} {
				l := newEventLab(t)
				if c.prepare != nil {
					c.prepare(l)
				}
				stdout, stderr, status := l.call(c.stdin, append([]string{format}, c.args...)...)
				fmt.Fprintf(&got, "-- %s: exit %d --\n%s", format, status, stdout)
				if stderr != "" {
					fmt.Fprintf(&got, "-- stderr --\n%s", stderr)
				}
			}
			compare(t, c.name, got.String())
		})
	}
}

func TestSessionsOfSub(t *testing.T) {
	l := newEventLab(t)
	sub := func(want string, more ...string) {
		t.Helper()
		stdout, stderr, _ := l.call("", append([]string{"sub", "public/#", "--session", "s", "--wait", "300ms"}, more...)...)
		if stdout != want {
			t.Errorf("%q, want %q (%s)", stdout, want, stderr)
		}
	}
	sub("")
	l.call("1\n2\n3\n", "pub", "public/n", "-", "--lines")
	sub("public/n  1\npublic/n  2\n", "-n", "2")
	sub("public/n  3\n")
	l.call("", "pub", "public/n", "4")
	l.call("", "sub", "public/#", "--session", "s", "--forget")
	sub("")
}

func TestTopicPlaces(t *testing.T) {
	for arg, want := range map[string]topicPlace{
		"a/b": {"", "a/b"}, "bob:a/b": {"bob", "a/b"}, "bob:a:b": {"bob", "a:b"}, ":a:b": {"", "a:b"}, "[fd50:494c:4f54::200]:a/#": {"fd50:494c:4f54::200", "a/#"},
		"0:0000.0000.0200:a": {"0:0000.0000.0200", "a"}, "bob:": {"bob", ""},
	} {
		if got, err := parseTopic(arg); err != nil || got != want {
			t.Errorf("%s: %+v %v", arg, got, err)
		}
	}
	if _, err := parseTopic("[fd50::1"); err == nil {
		t.Error("a bracket stays open")
	}
}
