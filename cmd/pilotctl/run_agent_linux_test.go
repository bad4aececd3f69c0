package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/urfave/cli/v2"
)

// The program's pilotctl is for the agent of run, and no token is handed on.
func TestRunEnvironment(t *testing.T) {
	t.Setenv("PILOT_SOCKET", "/run/other.sock")
	t.Setenv("PILOT_INVITE", "secret")
	t.Setenv("PILOT_NAME", "carol")
	p := &program{getenv: func(name string) string { return map[string]string{"XDG_RUNTIME_DIR": t.TempDir()}[name] }}
	b := &boxed{program: p, at: places{state: "/m", socket: "/m/pilot.sock", config: "/m/config.toml"}}
	env := b.environment()
	for _, want := range []string{"PILOT_SOCKET=/m/pilot.sock", "PILOT_STATE_DIR=/m", "PILOT_CONFIG=/m/config.toml", "PILOT_NAME=carol"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not there", want)
		}
	}
	for _, not := range []string{"PILOT_SOCKET=/run/other.sock", "PILOT_INVITE=secret"} {
		if slices.Contains(env, not) {
			t.Errorf("%s is there", not)
		}
	}
}

// What a killed run has left in memory goes with the next; what a living one has
// stays.
func TestSweepMemory(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(t.TempDir(), "pilot-run-")
	dead, living := fmt.Sprint(base, gone.Process.Pid), fmt.Sprint(base, os.Getpid())
	for _, dir := range []string{dead, living, base + "other"} {
		if err := os.MkdirAll(filepath.Join(dir, "events"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sweepMemory(base)
	left, _ := filepath.Glob(base + "*")
	if want := []string{living, base + "other"}; !slices.Equal(left, want) {
		t.Errorf("%q are left, want %q", left, want)
	}
}

// An ephemeral agent of run meets no other, unless a socket is asked for.
func TestRunPlace(t *testing.T) {
	p := &program{getenv: func(name string) string { return map[string]string{"PILOT_STATE_DIR": "/nowhere"}[name] }}
	for _, c := range []struct {
		socket    string
		ephemeral bool
		want      string
	}{{"", false, "/nowhere/pilot.sock"}, {"", true, ""}, {"/elsewhere/sock", true, "/elsewhere/sock"}} {
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.String("socket", c.socket, "")
		flags.Bool("ephemeral", c.ephemeral, "")
		b := &boxed{program: p, c: cli.NewContext(nil, flags, &cli.Context{Context: t.Context()})}
		if err := b.place(); err != nil {
			t.Fatal(err)
		}
		if want := either(c.want, filepath.Join(b.at.state, "pilot.sock")); b.at.socket != want || c.ephemeral != (b.at.state != "/nowhere") {
			t.Errorf("%+v: %+v", c, b.at)
		}
	}
}
