package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// wire is a lab without an Internet, which needs nothing from beside the
// repository: hosts on one Ethernet, of which rdv is the switch too. There is no
// IPv6 on it; programs meet it in the tunnel only, as on most agents' machines.
func wire(t *testing.T, hosts ...string) *lab {
	t.Helper()
	needHosts(t)
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{prefix: fmt.Sprintf("w%dx%d", os.Getpid(), labs.Add(1)), dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
		}
		l.killAll(t)
		for _, host := range append(hosts, "rdv") {
			if out, err := exec.Command(lookup("ip"), "netns", "del", l.namespace(host)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", host, err, out)
			}
		}
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.host(t, "rdv", "ip link add name lan0 type bridge", "ip link set lan0 up", "ip addr add 192.0.2.10/24 dev lan0")
	for _, host := range hosts {
		l.host(t, host,
			"ip link add name eth0 type veth peer name "+host+" netns "+l.namespace("rdv"),
			"ip -n "+l.namespace("rdv")+" link set "+host+" master lan0 up",
			"ip addr add "+wired(host)+"/24 dev eth0", "ip link set eth0 up")
	}
	return l
}

// wired is the address of a host on the wire: 192.0.2.21 is a1, .32 is b2.
func wired(host string) string {
	return fmt.Sprintf("192.0.2.%d%c", 2+int(host[0]-'a'), host[1])
}

// host makes one and runs commands on it.
func (l *lab) host(t *testing.T, host string, commands ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), lookup("ip"), "netns", "add", l.namespace(host)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", host, err, out)
	}
	first := []string{
		"for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done",
		"ip link set lo up",
	}
	l.output(t, host, "sh", "-ec", strings.Join(append(first, commands...), "\n"))
}

// background starts a program on the agent's machine, which is killed with the
// test's other programs, and waits until ready is among what it prints. The
// function returns all that it printed so far.
func (a *agent) background(t *testing.T, dir, ready string, args ...string) (printed func() string) {
	t.Helper()
	c := a.command(context.WithoutCancel(t.Context()), args...)
	c.Dir = dir
	logs, err := os.CreateTemp(a.lab.dir, "background")
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = logs, logs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait(); logs.Close() })
	printed = func() string {
		text, err := os.ReadFile(logs.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	within(t, 30*time.Second, args[0]+" starts", func() bool { return strings.Contains(printed(), ready) })
	return printed
}
