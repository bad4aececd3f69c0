package e2e_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// residue is all that a daemon could leave in the kernel for a host (without what
// ip says of namespaces of other tests that just went): what it has
// in the network, and processes.
func (a *agent) residue(t *testing.T) string {
	t.Helper()
	const show = "exec 2>/dev/null; ip -o link; ip -o -6 address; ip -6 route show table all; ip -6 rule; ip -4 route show table all; ip -4 rule; nft list ruleset"
	text := a.lab.output(t, a.host, "sh", "-c", show)
	for _, pid := range a.lab.processes(a.host) {
		if exe, err := os.Readlink(filepath.Join("/proc", itoa(pid), "exe")); err == nil && strings.HasSuffix(exe, "/pilotctl") {
			text += "process " + itoa(pid) + "\n"
		}
	}
	return text
}

// load downloads from bob without end, whatever becomes of it.
func (l *lab) load(t *testing.T, alice *agent, url string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c := alice.command(ctx, "curl", "-sS", "-g", "-m", "10", "--connect-timeout", "1", "-o", "/dev/null", url)
			c.Run()
		}
	}()
	t.Cleanup(func() { stop(); <-done })
}

// get tries for a page of bob's until it is there.
func (l *lab) get(t *testing.T, address string, wait time.Duration) bool {
	t.Helper()
	for late := time.Now().Add(wait); time.Now().Before(late); {
		ok := false
		err := l.enter("a1", func() error {
			c, err := (&net.Dialer{Timeout: 250 * time.Millisecond}).Dial("tcp", address)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
			answer, err := io.ReadAll(c)
			ok = bytes.Contains(answer, []byte(page))
			return err
		})
		if err == nil && ok {
			return true
		}
		<-time.After(10 * time.Millisecond) // an address that is not there fails at once
	}
	return false
}

// TestHostileKilled: agents are killed under load at random moments, while they
// start, too. Within a second the kernel has nothing of theirs any more, what
// remains in files is gone after the next start, and traffic flows again soon. 200
// times with PILOT_HOSTILE=1, and as often as PILOT_KILLS says.
func TestHostileKilled(t *testing.T) {
	t.Parallel()
	rounds := 2
	if os.Getenv("PILOT_HOSTILE") == "1" {
		rounds = 200
	}
	if n, err := strconv.Atoi(os.Getenv("PILOT_KILLS")); err == nil {
		rounds = n
	}
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	hosts, err := os.ReadFile(alice.hosts)
	if err != nil {
		t.Fatal(err)
	}
	before := map[*agent]string{}
	for _, a := range []*agent{alice, bob} {
		l.output(t, a.host, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6") // as TestKilledDaemon says
		before[a] = a.residue(t)
		a.up(t, s)
	}
	trust(t, alice, bob, "8080")
	l.website(t, "b1", "[::]:8080")
	address := bob.reach(t, "8080")
	if !l.get(t, address, 20*time.Second) {
		t.Fatal("no traffic at first")
	}
	l.load(t, alice, "http://"+address+"/1000")

	var clean, back []time.Duration
	for i := range rounds {
		a := []*agent{alice, bob}[i%2]
		moment := time.Duration(rand.IntN(400)) * time.Millisecond
		a.killAt(t, moment, i%4 == 3)
		killed := time.Now()
		for a.residue(t) != before[a] {
			if time.Since(killed) > 5*time.Second {
				t.Fatalf("round %d: before:\n%s\nand after:\n%s", i, before[a], a.residue(t))
			}
		}
		clean = append(clean, time.Since(killed))
		begin := time.Now()
		a.pilot(t, "up")
		up := time.Since(begin)
		if !l.get(t, address, 30*time.Second) {
			t.Fatalf("round %d: no traffic after the restart", i)
		}
		back = append(back, time.Since(begin))
		t.Logf("%s: up after %v, traffic after %v", a.name, up.Round(time.Millisecond), back[i].Round(time.Millisecond))
		if text, err := os.ReadFile(alice.hosts); err != nil || bytes.Count(text, []byte("bob.pilot.internal")) > 1 {
			t.Errorf("round %d: the hosts file, %v:\n%s", i, err, text)
		}
	}
	for _, list := range [][]time.Duration{clean, back} {
		slices.Sort(list)
	}
	p99 := func(list []time.Duration) time.Duration { return list[(len(list)*99+99)/100-1].Round(time.Millisecond) }
	t.Logf("killed %d times: nothing left after %v (p99, with the time it takes to look), traffic %v after the start (median %v, p99 %v)",
		rounds, p99(clean), back[0].Round(time.Millisecond), back[len(back)/2].Round(time.Millisecond), p99(back))
	if p99(clean) > time.Second && rounds == 200 {
		t.Error("something stays for more than a second")
	}
	for _, a := range []*agent{alice, bob} {
		a.pilot(t, "down")
		if after := a.residue(t); after != before[a] {
			t.Errorf("%s: before:\n%s\nand after:\n%s", a.name, before[a], after)
		}
		if sockets, _ := filepath.Glob(filepath.Join(a.state, "*.sock")); len(sockets) > 0 {
			t.Errorf("sockets remain: %v", sockets)
		}
		if after, err := os.ReadFile(a.hosts); err != nil || string(after) != string(hosts) {
			t.Errorf("the hosts file, %v:\n%s\nbefore:\n%s", err, after, hosts)
		}
	}
}

// killAt kills the daemon after some time under load, or that long after the
// beginning of a start.
func (a *agent) killAt(t *testing.T, moment time.Duration, starting bool) {
	t.Helper()
	var up *exec.Cmd
	if starting {
		a.kill(t)
		up = a.command(t.Context(), "pilotctl", "up")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(moment)
	if !starting {
		a.kill(t)
		return
	}
	for _, pid := range a.lab.processes(a.host) {
		if exe, err := os.Readlink(filepath.Join("/proc", itoa(pid), "exe")); err == nil && strings.HasSuffix(exe, "/pilotctl") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	up.Wait()
	within(t, 5*time.Second, a.name+" is killed while it starts", func() bool {
		pid := a.daemon()
		if pid != 0 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		return pid == 0
	})
}
