package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api/apitest"
)

func TestServiceGolden(t *testing.T) {
	empty := func(a *apitest.Agent) { a.Me.Peers, a.Me.Requests, a.Sent, a.Offered = nil, nil, nil, nil }
	connecting := func(a *apitest.Agent) {
		a.Me.Servers[0] = overlay.ServerStatus{Server: a.Me.Servers[0].Server, State: "connecting", Error: "connection refused"}
	}
	for _, c := range []struct {
		name    string
		prepare func(*apitest.Agent)
		args    []string
	}{
		{"help_service", nil, []string{"service", "--help"}},
		{"help_wait", nil, []string{"wait", "--help"}},
		{"service_alone", nil, []string{"service"}},
		{"service_print", nil, []string{"service", "print", "systemd", "--program", "/usr/local/bin/pilotctl"}},
		{"service_print_path", nil, []string{"service", "print", "launchd", "--program", "/Volumes/My Disk/pilotctl"}},
		{"service_print_other", nil, []string{"service", "print", "upstart"}},
		{"wait", nil, []string{"wait"}},
		{"wait_late", connecting, []string{"wait", "--timeout", "10ms"}},
		{"wait_live", connecting, []string{"wait", "--for", "live"}},
		{"wait_for_what", nil, []string{"wait", "--for", "godot"}},
		{"help_reset", nil, []string{"reset", "--help"}},
		{"reset", nil, []string{"reset"}},
		{"reset_yes", nil, []string{"reset", "--yes"}},
		{"reset_nothing", empty, []string{"reset", "--yes"}},
		{"help_invite", nil, []string{"trust", "invite", "--help"}},
		{"invite_fleet", nil, []string{"trust", "invite", "--ports", "80", "--ttl", "1h", "--uses", "50", "--name", "worker", "--trust-ttl", "30d"}},
		{"invite_fleet_for", nil, []string{"trust", "invite", "--ports", "80", "--ttl", "1h", "--uses", "2", "--for", bobContact}},
		{"invite_list", nil, []string{"trust", "invite", "list"}},
		{"invite_list_empty", func(a *apitest.Agent) { a.Made = nil }, []string{"trust", "invite", "list"}},
		{"invite_revoke", nil, []string{"trust", "invite", "revoke", "0123"}},
		{"invite_revoke_keep", nil, []string{"trust", "invite", "revoke", "--keep", "0123"}},
		{"invite_revoke_nobody", nil, []string{"trust", "invite", "revoke", "77"}},
		{"help_id", nil, []string{"id", "--help"}},
		{"help_id_export", nil, []string{"id", "export", "--help"}},
		{"help_id_import", nil, []string{"id", "import", "--help"}},
		{"help_join", nil, []string{"join", "--help"}},
		{"help_daemon", nil, []string{"daemon", "run", "--help"}},
		{"reset_unreachable", connecting, []string{"reset", "--yes"}},
		{"completion_what", nil, []string{"completion", "tcsh"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got strings.Builder
			for _, format := range []string{"--json=false", "--json"} {
				d := newDesk(t)
				if c.prepare != nil {
					c.prepare(d.agent)
				}
				stdout, stderr, status := d.call(t.Context(), "", append([]string{format}, c.args...)...)
				fmt.Fprintf(&got, "-- %s: exit %d --\n%s", format, status, stdout)
				if stderr != "" {
					fmt.Fprintf(&got, "-- stderr --\n%s", stderr)
				}
				for _, call := range d.agent.Calls() {
					fmt.Fprintf(&got, "-- asked: %s --\n", call)
				}
			}
			compare(t, c.name, got.String())
		})
	}
}

func TestWaitForADaemonThatIsNotThere(t *testing.T) {
	d := newDesk(t)
	_, stderr, status := d.call(t.Context(), "", "--socket", filepath.Join(d.dir, "none.sock"), "wait", "--timeout", "60ms")
	if status != 6 || !strings.Contains(stderr, "not ready after 60ms") || !strings.Contains(stderr, "pilotctl up") {
		t.Errorf("exit %d: %s", status, stderr)
	}
}

func TestComplete(t *testing.T) {
	d := newDesk(t)
	for line, want := range map[string]string{
		"stat":                "status",
		"trust re":            "reject request revoke",
		"service ":            "install print status uninstall",
		"service print ":      "launchd systemd systemd-online",
		"ping b":              "bob",
		"--json ping b":       "bob",
		"--state-dir /x st":   "status",
		"wait --t":            "--timeout",
		"serve http --allow ": "bob",
		"handsh":              "", // hidden
		"ping -c ":            "", // a number
	} {
		stdout, stderr, status := d.call(t.Context(), "", append([]string{completer, "--"}, strings.Split(line, " ")...)...)
		if got := strings.Join(strings.Fields(stdout), " "); got != want || status != 0 || stderr != "" {
			t.Errorf("%q: %q, want %q (exit %d: %s)", line, got, want, status, stderr)
		}
	}
}

// Every command that a user may type has its place in the manual.
func TestManualHasEveryCommand(t *testing.T) {
	d := newDesk(t)
	page, stderr, status := d.call(t.Context(), "", "man")
	if status != 0 || !strings.HasPrefix(page, ".") {
		t.Fatalf("exit %d: %s", status, stderr)
	}
	var visit func([]*cli.Command)
	visit = func(commands []*cli.Command) {
		for _, c := range commands {
			if c.Hidden {
				continue
			}
			if !strings.Contains(page, strings.ReplaceAll(c.Name, "-", `\-`)) && !strings.Contains(page, c.Name) {
				t.Errorf("the manual does not have %s", c.Name)
			}
			visit(c.Subcommands)
		}
	}
	visit((&program{}).app().Commands)
	if strings.Contains(page, completer) || strings.Contains(page, "send-file") {
		t.Error("the manual shows what is hidden")
	}
}

// The daemon tells its manager when it is ready, that it lives, and that it ends.
func TestNotifyManager(t *testing.T) {
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", socket.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))

	hear := func() string {
		t.Helper()
		socket.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 100)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	hang := make(chan struct{})
	asked := 0
	told := notifyManager(ctx, func() {
		if asked++; asked == 3 {
			<-hang
		}
	}, slog.New(slog.DiscardHandler))
	defer close(hang)
	heard := []string{hear(), hear(), hear()}
	if want := []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"}; !slices.Equal(heard, want) {
		t.Fatalf("%v, want %v", heard, want)
	}
	// A node that hangs does not feed the watchdog: what comes next is the end.
	stop()
	told()
	if last := hear(); last != "STOPPING=1" {
		t.Errorf("the last word is %q", last)
	}
}

func TestUsableByService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pilotctl")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, wrong := range map[string]bool{"/home/a/pilotctl": true, path: true, "/usr/bin/no-such-pilotctl": true, "/usr/bin": true, "/usr/bin/env": false} {
		if err := usableByService(path); (err != nil) != wrong {
			t.Errorf("%s: %v", path, err)
		}
	}
}
