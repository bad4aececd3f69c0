package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDoctor: on a sound machine doctor finds nothing; what is then broken it
// finds, for root and for others, with the daemon up and down; and the report
// tells nobody who the agents are.
func TestDoctor(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "8080")

	states := func(o outcome) map[string]string {
		t.Helper()
		var answer struct {
			Data struct {
				Findings []struct{ Check, State, Says string }
			}
		}
		if err := json.Unmarshal([]byte(o.stdout), &answer); err != nil {
			t.Fatalf("%v: %s", err, o)
		}
		found := map[string]string{}
		for _, f := range answer.Data.Findings {
			if found[f.Check] != "fail" {
				found[f.Check] = f.State
			}
		}
		return found
	}
	want := func(what string, status int, expect map[string]string) {
		t.Helper()
		o := alice.run(t, "pilotctl", "doctor", "--json")
		found := states(o)
		for check, state := range expect {
			if found[check] != state {
				t.Errorf("%s: %s is %q, want %q: %s", what, check, found[check], state, o)
			}
		}
		if o.status != status {
			t.Errorf("%s: exit status %d, want %d: %s", what, o.status, status, o)
		}
	}
	sound := map[string]string{}
	for _, check := range []string{"daemon", "config", "state", "clock", "device", "ipv6", "firewall", "server", "names"} {
		sound[check] = "ok"
	}
	want("a sound machine", 0, sound)

	block := func(rules string) {
		t.Helper()
		if o := alice.run(t, "sh", "-c", "nft add table inet f && "+rules); o.status != 0 {
			t.Fatal(o)
		}
	}
	block("nft 'add chain inet f i { type filter hook input priority 0; policy drop; }' && nft add rule inet f i ct state established accept")
	want("an input chain that drops", 0, map[string]string{"firewall": "warn", "names": "ok", "server": "ok"})
	alice.run(t, "nft", "delete", "table", "inet", "f")
	block("nft 'add chain inet f o { type filter hook output priority 0; policy accept; }' && nft add rule inet f o udp dport 3478 drop")
	want("no UDP", 0, map[string]string{"server": "warn", "clock": "ok"})
	alice.run(t, "nft", "delete", "table", "inet", "f")
	alice.run(t, "ip", "-6", "route", "del", "fd50:494c:4f54::/48")
	want("no route", 9, map[string]string{"ipv6": "fail", "names": "fail", "device": "ok"})

	out := filepath.Join(l.dir, "report.txt")
	alice.pilot(t, "bugreport", "--out", out)
	report, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	me, they := alice.id(t), bob.id(t)
	for _, secret := range []string{me.Fingerprint, me.ULA, me.Address, they.Fingerprint, they.ULA, they.Address, "192.0.2.10", strings.TrimPrefix(s.name, "192.0.2.10#"), "bob.pilot"} {
		if strings.Contains(string(report), secret) {
			t.Errorf("%q is in the report", secret)
		}
	}
	if !strings.Contains(string(report), "there is no route") || !strings.Contains(string(report), "registered") {
		t.Errorf("%s", report)
	}

	alice.pilot(t, "down")
	want("the daemon is down", 9, map[string]string{"daemon": "fail", "device": "ok", "ipv6": "ok", "server": "ok", "clock": "ok", "names": "unknown"})
	alice.pilot(t, "up")
	within(t, 5*time.Second, "it is up again", func() bool { return len(alice.status(t).Servers) > 0 })
	want("up again", 0, sound)
	o := alice.run(t, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "pilotctl", "doctor", "--json")
	if found := states(o); o.status != 0 || found["daemon"] != "unknown" || found["firewall"] != "unknown" || found["ipv6"] != "unknown" {
		t.Errorf("as nobody: exit status %d: %s", o.status, o)
	}
}
