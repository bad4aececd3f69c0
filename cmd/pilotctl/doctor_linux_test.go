package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/api/apitest"
)

const insideNamespace = "PILOT_TEST_NAMESPACE"

// inNamespace runs the test again in a network namespace of its own, and reports
// whether this is that run.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideNamespace) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("PILOT_REQUIRE_ROOT") != "" {
			t.Fatal("this test has to run as root")
		}
		t.Skip("needs root, for a network namespace")
	}
	c := exec.Command("unshare", "-n", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), insideNamespace+"=1")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return false
}

func do(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// TestDoctorInNamespace looks at a real kernel: a device of which IPv6 is taken
// away, somebody else in our prefix, a firewall.
func TestDoctorInNamespace(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	do(t, "ip link set lo up; ip tuntap add pilot0 mode tun; ip link set pilot0 up; ip addr add fd50:494c:4f54::100/128 dev pilot0; ip -6 route add fd50:494c:4f54::/48 dev pilot0")
	findings := func(check string) (list []finding) {
		e := examination{now: time.Now(), status: apitest.New().Me}
		e.machine = examineMachine(t.Context(), subject{device: "pilot0", at: places{state: t.TempDir()}, now: time.Now})
		for _, f := range e.judge().Findings {
			if f.Check == check {
				list = append(list, f)
			}
		}
		return list
	}
	want := func(check, state, says string) {
		t.Helper()
		if list := findings(check); !slices.ContainsFunc(list, func(f finding) bool { return f.State == state && strings.Contains(f.Says, says) }) {
			t.Errorf("want %s %s %q, got %+v", check, state, says, list)
		}
	}
	want("device", fine, "pilot0 is up")
	want("ipv6", fine, "fd50:494c:4f54::100")
	do(t, "ip -6 route del fd50:494c:4f54::/48 dev pilot0")
	want("ipv6", broken, "no route")
	do(t, "ip -6 route add fd50:494c:4f54::/48 dev pilot0; ip link add other type veth peer name other2; ip link set other up; ip -6 route add fd50:494c:4f54::/64 dev other")
	want("ipv6", broken, "other has a route to fd50:494c:4f54::/64")
	do(t, "ip link del other; sysctl -qw net.ipv6.conf.pilot0.disable_ipv6=1")
	want("ipv6", broken, "disabled on pilot0")
	do(t, "sysctl -qw net.ipv6.conf.pilot0.disable_ipv6=0; ip link set pilot0 down")
	want("device", broken, "is down")
	if tool("nft") == "" {
		t.Log("nft is not installed: no firewall was looked at")
		return
	}
	want("firewall", fine, "")
	do(t, "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; policy drop; }'; nft add rule inet f in tcp dport 22 accept")
	want("firewall", doubt, "inet f in")
	// What it advises works.
	for _, f := range findings("firewall") {
		advice, _, _ := strings.Cut(f.Do, "  ")
		do(t, advice)
	}
	want("firewall", fine, "has rules for pilot0")
}
