package main

import (
	"os"
	"path/filepath"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/api"
)

// places says where one agent keeps its files. All paths are absolute.
type places struct {
	state  string // directory of identity, trust and the log of a background daemon
	socket string // use socket; the govern socket lies beside it
	config string // configuration file
	system bool   // none was chosen, and we are root: the machine's own agent
}

// Files in the state directory. The store and its companions belong to the
// packages that make them.
const (
	identityFile = "identity"
	logFile      = "daemon.log"
)

// host is what the default places depend on.
type host struct {
	getenv func(string) string
	euid   int
	goos   string
	exists func(path string) bool
}

// places finds the places of this call.
func (p *program) places(c *cli.Context) (places, error) {
	chosen := places{state: c.String("state-dir"), socket: c.String("socket"), config: c.String("config")}
	at := findPlaces(chosen, host{getenv: p.getenv, euid: os.Geteuid(), goos: runtime.GOOS, exists: func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}})
	for _, path := range []*string{&at.state, &at.socket, &at.config} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return at, err
		}
		*path = abs
	}
	return at, api.CheckPath(at.socket)
}

// findPlaces fills what the flags left open: from the environment, else from the
// state directory if that was chosen, else with the usual places of this user.
func findPlaces(at places, h host) places {
	for path, name := range map[*string]string{&at.state: "PILOT_STATE_DIR", &at.socket: "PILOT_SOCKET", &at.config: "PILOT_CONFIG"} {
		if *path == "" {
			*path = h.getenv(name)
		}
	}
	at.system = at.state == "" && h.euid == 0
	if at.state != "" {
		at.socket = either(at.socket, filepath.Join(at.state, "pilot.sock"))
		at.config = either(at.config, filepath.Join(at.state, "config.toml"))
		return at
	}
	usual := systemPlaces(h.goos)
	if h.euid != 0 {
		system := usual.socket
		usual = userPlaces(h)
		// Somebody who has no agent means the machine's.
		if !h.exists(usual.socket) && !h.exists(filepath.Join(usual.state, identityFile)) && h.exists(system) {
			usual.socket = system
		}
	}
	at.state = either(at.state, usual.state)
	at.socket = either(at.socket, usual.socket)
	at.config = either(at.config, usual.config)
	return at
}

func systemPlaces(goos string) places {
	if goos == "darwin" {
		return places{state: "/var/db/pilot", socket: "/var/run/pilot.sock", config: "/etc/pilot/config.toml"}
	}
	return places{state: "/var/lib/pilot", socket: "/run/pilot/pilot.sock", config: "/etc/pilot/config.toml"}
}

// userPlaces follows the XDG Base Directory Specification. Without a runtime
// directory the sockets lie in the state directory.
func userPlaces(h host) places {
	home := h.getenv("HOME")
	state := filepath.Join(either(h.getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "pilot")
	config := filepath.Join(either(h.getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")), "pilot", "config.toml")
	run := state
	if dir := h.getenv("XDG_RUNTIME_DIR"); dir != "" {
		run = filepath.Join(dir, "pilot")
	}
	return places{state: state, socket: filepath.Join(run, "pilot.sock"), config: config}
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
