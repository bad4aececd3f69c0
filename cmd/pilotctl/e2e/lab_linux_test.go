package e2e_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A lab is one Internet: site a with hosts a1 and a2, site b with b1 and b2, each
// behind a NAT of the kind that was asked for, and a public host rdv.
type lab struct {
	script string
	prefix string
	dir    string // for the files of its agents; short, because sockets lie in it
	env    []string
}

var labs atomic.Int32

// newLab builds a lab that is gone after the test with all that runs in it.
func newLab(t *testing.T, kinds ...string) *lab {
	t.Helper()
	return newLabWith(t, nil, kinds...)
}

// newLabWith is newLab with variables that the lab knows.
func newLabWith(t *testing.T, env []string, kinds ...string) *lab {
	t.Helper()
	needLab(t)
	path, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{script: path, prefix: fmt.Sprintf("e%dx%d", os.Getpid(), labs.Add(1)), dir: dir, env: env}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
		}
		l.killAll(t)
		if out, err := l.natlab(context.Background(), "down").CombinedOutput(); err != nil {
			t.Errorf("natlab down: %v: %s", err, out)
		}
		os.RemoveAll(dir)
	})
	// Those who lack a right have to reach what the lab shows them.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.do(t, append([]string{"up"}, kinds...)...)
	return l
}

// showLogs prints what the daemons had to say.
func (l *lab) showLogs(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(l.dir, "*", "daemon.log"))
	for _, name := range logs {
		if text, err := os.ReadFile(name); err == nil {
			t.Logf("%s:\n%s", name, text)
		}
	}
}

func (l *lab) natlab(ctx context.Context, args ...string) *exec.Cmd {
	return l.program(ctx, l.script, args...)
}

// program is a command with the environment of the lab.
func (l *lab) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PILOT_") && !strings.HasPrefix(v, "PATH=") {
			c.Env = append(c.Env, v)
		}
	}
	c.Env = append(append(c.Env, l.env...), "NATLAB_PREFIX="+l.prefix, "PATH="+filepath.Dir(pilotctl)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	c.WaitDelay = time.Second
	return c
}

// do runs a command of the lab, such as "flush b".
func (l *lab) do(t *testing.T, args ...string) {
	t.Helper()
	if out, err := l.natlab(t.Context(), args...).CombinedOutput(); err != nil {
		t.Fatalf("natlab %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// on is a command that will run on a host.
func (l *lab) on(ctx context.Context, host string, args ...string) *exec.Cmd {
	if l.script == "" {
		return l.program(ctx, lookup("ip"), append([]string{"netns", "exec", l.namespace(host)}, args...)...)
	}
	return l.natlab(ctx, append([]string{"exec", host}, args...)...)
}

// output runs a command on a host and returns what it prints.
func (l *lab) output(t *testing.T, host string, args ...string) string {
	t.Helper()
	out, err := l.on(t.Context(), host, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v: %s", host, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// address is that of a host in its own network.
func (l *lab) address(t *testing.T, host string) string {
	t.Helper()
	out, err := l.natlab(t.Context(), "addr", host).Output()
	if err != nil {
		t.Fatalf("natlab addr %s: %v", host, err)
	}
	return strings.TrimSpace(string(out))
}

func (l *lab) namespace(host string) string { return l.prefix + "-" + host }

// processes are those that run in the namespace of a host.
func (l *lab) processes(host string) []int {
	out, err := exec.Command(lookup("ip"), "netns", "pids", l.namespace(host)).Output()
	if err != nil {
		return nil // no such host in this lab
	}
	var list []int
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() {
			list = append(list, pid)
		}
	}
	return list
}

// killAll ends what runs on the hosts: a namespace lives on with its processes.
func (l *lab) killAll(t *testing.T) {
	hosts := []string{"rdv", "rdv2", "a1", "a2", "b1", "b2", "c1", "c2"}
	gone := func() bool {
		n := 0
		for _, host := range hosts {
			for _, pid := range l.processes(host) {
				n++
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return n == 0
	}
	if !poll(context.Background(), 10*time.Second, gone) {
		t.Error("processes of the lab do not die")
	}
}

// inside runs f on a thread in the network of a host. Sockets that f opens stay
// there, whoever uses them afterwards.
func (l *lab) inside(t *testing.T, host string, f func() error) {
	t.Helper()
	if err := l.enter(host, f); err != nil {
		t.Fatalf("on %s: %v", host, err)
	}
}

// enter is inside for goroutines other than the test's.
func (l *lab) enter(host string, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		result <- func() error {
			ns, err := os.Open(filepath.Join("/run/netns", l.namespace(host)))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-result
}

// listen opens a TCP socket on a host.
func (l *lab) listen(t *testing.T, host, address string) net.Listener {
	t.Helper()
	var n net.Listener
	l.inside(t, host, func() (err error) {
		n, err = net.Listen("tcp", address)
		return err
	})
	t.Cleanup(func() { n.Close() })
	return n
}

// listenUDP opens a UDP socket on a host.
func (l *lab) listenUDP(t *testing.T, host, address string) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	l.inside(t, host, func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// dial connects from a host; address must not need a resolver.
func (l *lab) dial(t *testing.T, host, network, address string) net.Conn {
	t.Helper()
	var c net.Conn
	l.inside(t, host, func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), network, address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// poll calls ok until it is true or time is up.
func poll(ctx context.Context, wait time.Duration, ok func() bool) bool {
	late := time.NewTimer(wait)
	defer late.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-late.C:
			return ok()
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// within fails the test unless ok becomes true in time.
func within(t *testing.T, wait time.Duration, what string, ok func() bool) {
	t.Helper()
	begin := time.Now()
	if !poll(t.Context(), wait, ok) {
		t.Fatalf("after %v: not yet: %s", wait, what)
	}
	t.Logf("%s: after %v", what, time.Since(begin).Round(time.Millisecond))
}

func itoa(n int) string { return strconv.Itoa(n) }
