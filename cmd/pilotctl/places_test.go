package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFindPlaces(t *testing.T) {
	const root, user = 0, 1000
	home := map[string]string{"HOME": "/home/u"}
	for _, c := range []struct {
		name   string
		chosen places
		env    map[string]string
		euid   int
		goos   string
		exists []string
		want   places
	}{
		{name: "root on linux", euid: root, goos: "linux",
			want: places{state: "/var/lib/pilot", socket: "/run/pilot/pilot.sock", config: "/etc/pilot/config.toml", system: true}},
		{name: "root on macOS", euid: root, goos: "darwin",
			want: places{state: "/var/db/pilot", socket: "/var/run/pilot.sock", config: "/etc/pilot/config.toml", system: true}},
		{name: "user", euid: user, goos: "linux", env: home,
			want: places{state: "/home/u/.local/state/pilot", socket: "/home/u/.local/state/pilot/pilot.sock", config: "/home/u/.config/pilot/config.toml"}},
		{name: "user with XDG directories", euid: user, goos: "linux",
			env:  map[string]string{"HOME": "/home/u", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"},
			want: places{state: "/s/pilot", socket: "/r/pilot/pilot.sock", config: "/c/pilot/config.toml"}},
		{name: "user of the machine's agent", euid: user, goos: "linux", env: home, exists: []string{"/run/pilot/pilot.sock"},
			want: places{state: "/home/u/.local/state/pilot", socket: "/run/pilot/pilot.sock", config: "/home/u/.config/pilot/config.toml"}},
		{name: "user with an own agent too", euid: user, goos: "linux", env: home,
			exists: []string{"/run/pilot/pilot.sock", "/home/u/.local/state/pilot/identity"},
			want:   places{state: "/home/u/.local/state/pilot", socket: "/home/u/.local/state/pilot/pilot.sock", config: "/home/u/.config/pilot/config.toml"}},
		{name: "state directory only", euid: root, goos: "linux", chosen: places{state: "/a"},
			want: places{state: "/a", socket: "/a/pilot.sock", config: "/a/config.toml"}},
		{name: "state directory by environment", euid: root, goos: "linux", env: map[string]string{"PILOT_STATE_DIR": "/a"},
			want: places{state: "/a", socket: "/a/pilot.sock", config: "/a/config.toml"}},
		{name: "all by environment", euid: root, goos: "linux",
			env:  map[string]string{"PILOT_STATE_DIR": "/a", "PILOT_SOCKET": "/b.sock", "PILOT_CONFIG": "/c.toml"},
			want: places{state: "/a", socket: "/b.sock", config: "/c.toml"}},
		{name: "flags win", euid: root, goos: "linux", chosen: places{state: "/f", socket: "/f.sock"},
			env:  map[string]string{"PILOT_STATE_DIR": "/a", "PILOT_SOCKET": "/b.sock"},
			want: places{state: "/f", socket: "/f.sock", config: "/f/config.toml"}},
		{name: "socket only", euid: root, goos: "linux", chosen: places{socket: "/f.sock"},
			want: places{state: "/var/lib/pilot", socket: "/f.sock", config: "/etc/pilot/config.toml", system: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := findPlaces(c.chosen, host{
				getenv: func(key string) string { return c.env[key] },
				euid:   c.euid, goos: c.goos,
				exists: func(path string) bool {
					for _, e := range c.exists {
						if e == path {
							return true
						}
					}
					return false
				},
			})
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(places{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
