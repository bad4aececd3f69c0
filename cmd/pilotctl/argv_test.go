package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func noEnvironment(string) string { return "" }

func TestNormalise(t *testing.T) {
	for _, c := range []struct {
		args, want string // words joined by a space
		code       overlay.Code
	}{
		{"", "", ""},
		{"status", "status", ""},
		{"ping bob", "ping -- bob", ""},
		{"ping -c 3 bob", "ping -c 3 -- bob", ""},
		{"ping bob -c 3", "ping -c 3 -- bob", ""},
		{"ping bob --count=3", "ping --count=3 -- bob", ""},
		{"ping bob -c -1", "ping -c -1 -- bob", ""},
		{"ping --json bob", "--json ping -- bob", ""},
		{"ping bob --json", "--json ping -- bob", ""},
		{"ping bob --until-direct -c 3 --json", "--json ping --until-direct -c 3 -- bob", ""},
		{"--json ping bob", "--json ping -- bob", ""},
		{"--state-dir /x status", "--state-dir /x status", ""},
		{"status --state-dir /x", "--state-dir /x status", ""},
		{"status --state-dir=/x --watch", "--state-dir=/x status --watch", ""},
		{"trust --json pending --watch", "--json trust pending --watch", ""},
		{"trust request C --reason R --ports 80 --as bob", "trust request --reason R --ports 80 --as bob -- C", ""},
		{"trust request --reason --json C", "trust request --reason --json -- C", ""}, // the value is the next word
		{"trust accept -", "trust accept -- -", ""},
		{"trust accept -- -odd", "trust accept -- -odd", ""},
		{"ping -- --json -c", "ping -- --json -c", ""},
		{"ping help", "ping -- help", ""}, // a peer may be called so
		{"ping json", "ping -- json", ""},
		{"up --server A --server B --name n", "up --server A --server B --name n", ""},
		{"ping --help", "ping --help", ""},
		{"ping bob -h -c 3", "ping --help", ""},
		{"help ping", "ping --help", ""},
		{"help", "--help", ""},
		{"trust help request", "trust request --help", ""},
		{"info --json", "--json info", ""},
		{"handshake C --reason R", "handshake --reason R -- C", ""},

		{"ping bob --cuont 3", "", overlay.CodeInvalidArgument},
		{"ping bob -x", "", overlay.CodeInvalidArgument},
		{"ping bob -c3", "", overlay.CodeInvalidArgument},
		{"ping bob -c", "", overlay.CodeInvalidArgument},
		{"-c 3 ping bob", "", overlay.CodeInvalidArgument},
		{"pign bob", "", overlay.CodeInvalidArgument},
		{"trust aprove bob", "", overlay.CodeInvalidArgument},
		{"status --state-dir", "", overlay.CodeInvalidArgument},
		{"trust revoke -bob", "", overlay.CodeInvalidArgument},
	} {
		t.Run(c.args, func(t *testing.T) {
			p := &program{getenv: noEnvironment}
			got, err := normalise(p.app(), append([]string{"pilotctl"}, strings.Fields(c.args)...))
			if c.code != "" {
				if err == nil || api.AsError(err).Code != c.code {
					t.Fatalf("got %v, want %s", err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(append([]string{"pilotctl"}, strings.Fields(c.want)...), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWantsJSON(t *testing.T) {
	for _, c := range []struct {
		args, env string
		want      bool
	}{
		{"status", "", false}, {"status --json", "", true}, {"--json status", "", true}, {"nonsense --json", "", true},
		{"ping -- --json", "", false}, {"status", "1", true}, {"status", "0", false}, {"status --json=false", "1", false},
	} {
		got := wantsJSON(strings.Fields(c.args), func(string) string { return c.env })
		if got != c.want {
			t.Errorf("%q with %q: %v", c.args, c.env, got)
		}
	}
}
