package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCycles starts and stops an agent again and again, every tenth time with
// SIGKILL. After one "down" at the end nothing is left of it: no interface, route,
// file, process or line in the hosts file. Ten times, 50 in CI
// (PILOT_REQUIRE_ROOT=1), 1,000 with PILOT_LONG=1, or as often as PILOT_CYCLES says.
func TestCycles(t *testing.T) {
	t.Parallel()
	needHosts(t)
	cycles := 10
	if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
		cycles = 50
	}
	if os.Getenv("PILOT_LONG") == "1" {
		cycles = 1000
	}
	if text := os.Getenv("PILOT_CYCLES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("PILOT_CYCLES is %q: want a number", text)
		}
		cycles = n
	}
	l := wire(t, "a1")
	alice := l.agent(t, "a1", "alice")
	hosts, err := os.ReadFile(alice.hosts)
	if err != nil {
		t.Fatal(err)
	}
	alice.pilot(t, "up", "--name", "alice") // makes the files that stay: its state
	alice.pilot(t, "down")
	l.output(t, "a1", "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	within(t, 5*time.Second, "the device is gone", func() bool { return !strings.Contains(l.network(t, "a1"), "pilot0") })
	network, files := l.network(t, "a1"), allFiles(t, l.dir)
	begin := time.Now()
	for i := range cycles {
		alice.pilot(t, "up")
		if i%10 == 9 {
			alice.kill(t)
		} else {
			alice.pilot(t, "down")
		}
	}
	took := time.Since(begin)
	alice.pilot(t, "down")
	t.Logf("%d cycles in %v", cycles, took.Round(time.Millisecond))
	l.leftAs(t, "a1", network)
	if after := allFiles(t, l.dir); after != files {
		t.Errorf("files before:\n%s\nand after:\n%s", files, after)
	}
	if after, err := os.ReadFile(alice.hosts); err != nil || string(after) != string(hosts) {
		t.Errorf("the hosts file, %v:\n%s\nbefore:\n%s", err, after, hosts)
	}
}

// allFiles lists the files below a directory.
func allFiles(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Base(path) != "daemon.log.1" { // a log that was too long
			b.WriteString(path + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
