package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leftAs waits until nothing of a daemon that ended or died remains in a host's
// network: the kernel takes its device away when the last of its threads has ended.
func (l *lab) leftAs(t *testing.T, host, before string) {
	t.Helper()
	var after string
	if !poll(t.Context(), 5*time.Second, func() bool { after = l.network(t, host); return after == before }) {
		t.Errorf("the network before:\n%s\nand after:\n%s", before, after)
	}
	if p := l.processes(host); len(p) > 0 {
		t.Errorf("processes %v remain", p)
	}
}

// network is all that a daemon could leave behind in a host's network.
func (l *lab) network(t *testing.T, host string) string {
	t.Helper()
	var b strings.Builder
	for _, what := range []string{"-o link", "-o -6 address", "-6 route show table all", "-6 rule", "-4 route show table all", "-4 rule"} {
		b.WriteString(l.output(t, host, append([]string{"ip"}, strings.Fields(what)...)...))
	}
	b.WriteString(l.output(t, host, "nft", "list", "ruleset"))
	return b.String()
}

// TestKilledDaemon: after SIGKILL the kernel has nothing of the agent's any more.
// What may remain is harmless and taken away by "down" or by the next "up", after
// which traffic flows as before.
func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	hosts, err := os.ReadFile(alice.hosts)
	if err != nil {
		t.Fatal(err)
	}
	// Machines have IPv6 on lo. Where one has not, the daemon switches it on for
	// good: package tun says why.
	l.output(t, "a1", "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	before := l.network(t, "a1")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "8080")
	site := l.website(t, "b1", "[::]:8080", 5)
	site.download(t, alice, bobURL, 5)

	gone := func() {
		t.Helper()
		l.leftAs(t, "a1", before)
	}
	alice.kill(t)
	gone()
	alice.refused(t, 3, []string{"pilotctl up"}, "status")
	alice.pilot(t, "up") // over what remained
	site.download(t, alice, bobURL, 5)

	alice.kill(t)
	gone()
	if o := alice.run(t, "pilotctl", "down"); o.status != 0 {
		t.Error(o)
	}
	if after, err := os.ReadFile(alice.hosts); err != nil || string(after) != string(hosts) {
		t.Errorf("the hosts file, %v:\n%s\nbefore:\n%s", err, after, hosts)
	}
	if sockets, _ := filepath.Glob(filepath.Join(alice.state, "*.sock")); len(sockets) > 0 {
		t.Errorf("sockets remain: %v", sockets)
	}
	alice.pilot(t, "up")
	site.download(t, alice, bobURL, 5)
	alice.pilot(t, "down")
	gone()
}
