package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// anyDevice shows a TUN driver that every user may open, as most systems have it,
// and a resolver on the public side.
const anyDevice = `mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 || exit 125
echo nameserver 192.0.2.10 >"$PILOT_STATE_DIR.resolv" && mount --bind "$PILOT_STATE_DIR.resolv" /etc/resolv.conf || exit 125
`

// asNobody is a command of a user without any rights.
func (a *agent) asNobody(ctx context.Context, args ...string) *exec.Cmd {
	as := []string{"setpriv", "--reuid", itoa(nobody), "--regid", itoa(nobody), "--clear-groups"}
	return a.prepared(ctx, anyDevice, append(as, args...)...)
}

// A runShell is one that reads what it does from its input, inside run.
type runShell struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err strings.Builder
}

func (a *agent) runShell(t *testing.T, args ...string) *runShell {
	t.Helper()
	s := &runShell{t: t, cmd: a.asNobody(t.Context(), append(append([]string{"pilotctl", "run"}, args...), "--", "sh")...)}
	s.cmd.Stderr = &s.err
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		s.in, err = s.cmd.StdinPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	return s
}

// do runs a command there and returns what it prints.
func (s *runShell) do(command string) string {
	s.t.Helper()
	const end = "the command has ended"
	fmt.Fprintf(s.in, "{ %s\n} 2>&1; echo; echo %s\n", command, end)
	var text strings.Builder
	for s.out.Scan() {
		if s.out.Text() == end {
			return strings.TrimSpace(text.String())
		}
		text.WriteString(s.out.Text() + "\n")
	}
	s.t.Fatalf("the shell ended at %q: %s%s", command, &text, &s.err)
	return ""
}

// want runs a command that is to print something.
func (s *runShell) want(command, want string) {
	s.t.Helper()
	if got := s.do(command); !strings.Contains(got, want) {
		s.t.Errorf("%s: %q, want %q", command, got, want)
	}
}

// resolver answers every question for the address of name on the public side, and
// says that there is no other name.
func (l *lab) resolver(t *testing.T, host, address, name string, ip [4]byte) {
	t.Helper()
	p := l.listenUDP(t, host, address)
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := p.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			switch {
			case q.Name.String() != name+".":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: ip},
				}}
			}
			if reply, err := m.Pack(); err == nil {
				p.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
}

// TestRun: nobody, without any capability, runs programs that know nothing in a
// network of their own. They reach a peer and the Internet by name, and a peer
// reaches them.
func TestRun(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	bob.up(t, s)
	toNobody(t, alice.state)
	peer, public := l.website(t, "b1", "[::]:8080", 20), l.website(t, "rdv", "192.0.2.10:8080", 20)
	l.resolver(t, "rdv", "192.0.2.10:53", "www.example", [4]byte{192, 0, 2, 10})

	inside := alice.runShell(t, "--name", "alice", "--server", s.name)
	inside.want("id -u", itoa(nobody))
	inside.want("grep Cap /proc/self/status | grep -v CapBnd | cut -f2 | sort -u", "0000000000000000")
	trust(t, alice, bob, "8080", "--offer", "8081")
	within(t, 10*time.Second, "bob may reach alice", func() bool { return bob.peer(t, "alice").Out == "8081" })

	t.Run("a peer", func(t *testing.T) {
		inside.want("curl -sS -m 20 "+bobURL, strings.TrimSpace(page))
		inside.want("curl -sS -m 60 "+bobURL+"20 | sha256sum", peer.sums[20])
		inside.want("ping -c 2 -i 0.2 bob.pilot.internal", " 0% packet loss")
	})
	t.Run("the public side", func(t *testing.T) {
		inside.want("curl -sS -m 20 http://192.0.2.10:8080/", strings.TrimSpace(page))
		inside.want("curl -sS -m 60 http://www.example:8080/20 | sha256sum", public.sums[20])
		inside.want("curl -sS -m 10 http://nowhere.example/", "Could not resolve host")
		inside.want("curl -sS -m 10 http://192.0.2.10:8089/", "Failed to connect") // refused, not silent
	})
	t.Run("served inside", func(t *testing.T) {
		// On the loopback in there, as most servers: the agent's own means reach it.
		inside.do(`while :; do printf 'HTTP/1.0 200 OK\r\n\r\nfrom the inside' | nc -l -N 127.0.0.1 9000 >/dev/null || break; done &`)
		inside.want("pilotctl serve tcp 9000 --port 8081", "8081")
		within(t, 20*time.Second, "bob reads what the program serves", func() bool {
			o := bob.run(t, "curl", "-sS", "-m", "5", "http://alice.pilot.internal:8081/")
			return o.stdout == "from the inside"
		})
		inside.do("kill $!; pkill -P $! 2>/dev/null; true")
	})
	t.Run("the host sees nothing", func(t *testing.T) {
		if o := alice.run(t, "ip", "-o", "link"); strings.Contains(o.stdout, "pilot0") || strings.Contains(o.stdout, "host0") {
			t.Error(o)
		}
		if text, err := os.ReadFile(alice.hosts); err != nil || strings.Contains(string(text), "pilot") {
			t.Errorf("%s, %v", text, err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		wantRefusal(t, finish(t, alice.asNobody(t.Context(), "pilotctl", "run", "--", "true")), 7, "alice is up already", "run --ephemeral")
	})
	t.Run("ephemeral", func(t *testing.T) { testRunEphemeral(t, alice, bob) })
	fmt.Fprintln(inside.in, "exit 9")
	if err := inside.cmd.Wait(); inside.cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("exit 9 became %v: %s", err, &inside.err)
	}
	if _, err := os.Stat(filepath.Join(alice.state, "run")); err == nil {
		t.Error("files of run are left")
	}
	t.Run("ends", func(t *testing.T) { testRunEnds(t, alice) })
	t.Run("terminal", func(t *testing.T) { testRunTerminal(t, alice) })
	t.Run("killed", func(t *testing.T) { testRunKilled(t, alice) })
	t.Run("not allowed", func(t *testing.T) { testRunNotAllowed(t, l, alice) })
}

func toNobody(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testRunEnds: exit status, signals and input are the program's.
func testRunEnds(t *testing.T, a *agent) {
	for _, c := range []struct {
		args   []string
		stdin  string
		status int
		stdout string
	}{
		{[]string{"sh", "-c", "exit 42"}, "", 42, ""},
		{[]string{"cat"}, "through\n", 0, "through\n"},
		{[]string{"sh", "-c", "kill -TERM $$"}, "", 128 + 15, ""},
		{[]string{"no-such-program"}, "", 127, ""},
		{[]string{"/etc/passwd"}, "", 126, ""},
	} {
		cmd := a.asNobody(t.Context(), append([]string{"pilotctl", "run", "--wait", "0s", "--"}, c.args...)...)
		cmd.Stdin = strings.NewReader(c.stdin)
		o := finish(t, cmd)
		if o.status == -1 { // the shells on the way became pilotctl
			o.status = 128 + 15
		}
		if o.status != c.status || o.stdout != c.stdout {
			t.Errorf("%q: exit status %d, want %d: %s", c.args, o.status, c.status, o)
		}
	}
	cmd := a.asNobody(t.Context(), "pilotctl", "run", "--wait", "0s", "--", "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	pid := a.process(t, "run")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if cmd.Wait(); lines.Text() != "got it" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%q, %v", lines.Text(), cmd.ProcessState)
	}
}

// testRunEphemeral: beside the agent that is up, a program has one of its own with
// nothing but a token. At the end a server knows it no more and nothing of it is left.
func testRunEphemeral(t *testing.T, a, bob *agent) {
	made := answer[struct{ Token string }](t, bob, "trust", "invite", "--ports", "8080", "--ttl", "1h", "--name", "guest")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(made.Token), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(file); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	inside := a.runShell(t, "--ephemeral", "--invite", "file:"+file, "--health", "8087")
	inside.want("curl -sS -m 20 "+bobURL, strings.TrimSpace(page))
	inside.want("env | grep -c INVITE", "0")
	inside.want("pilotctl peers", "bob")
	contact := inside.do("pilotctl id --json | tr , '\n' | grep contact | cut -d'\"' -f4")
	dir := inside.do("dirname $PILOT_SOCKET")
	if contact == a.id(t).Contact || filepath.Dir(dir) == a.lab.dir {
		t.Errorf("%s in %s is no agent of its own", contact, dir)
	}
	// The memory of a process that must not dump is root's.
	var owner unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/mem", a.process(t, "run\x00--ephemeral")), &owner); err != nil || owner.Uid != 0 {
		t.Errorf("its memory is open to user %d, %v", owner.Uid, err)
	}
	if o := a.run(t, "curl", "-sf", "-m", "5", "http://127.0.0.1:8087/readyz"); o.status != 0 {
		t.Error(o)
	}
	fmt.Fprintln(inside.in, "exit 7")
	if inside.cmd.Wait(); inside.cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("%v: %s", inside.cmd.ProcessState, &inside.err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	bob.refused(t, 4, []string{"knows no agent"}, "trust", "request", contact, "--reason", "is it gone?")
	if s := a.status(t); s.State != "ready" {
		t.Errorf("the agent that was up is %s", s.State)
	}
}

// process is the pilotctl on the agent's host that carries out a command.
func (a *agent) process(t *testing.T, command string) int {
	t.Helper()
	found := 0
	within(t, 10*time.Second, "pilotctl "+command+" runs", func() bool {
		// The kernel lists processes by the namespace of the network that they are in:
		// the one that keeps the program's is not among these.
		i := slices.IndexFunc(a.lab.processes(a.host), func(pid int) bool {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && strings.HasPrefix(string(line), "pilotctl\x00"+command+"\x00") {
				found = pid
				return true
			}
			return false
		})
		return i >= 0
	})
	return found
}

// testRunTerminal: a program in a terminal has it, and an interrupt from the
// keyboard once.
func testRunTerminal(t *testing.T, a *agent) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a terminal: %v", err)
	}
	defer ours.Close()
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd := a.asNobody(t.Context(), "pilotctl", "run", "--wait", "0s", "--", "sh", "-c", `
n=0
trap 'n=$((n + 1))' INT
[ -t 0 ] && [ -t 1 ] && echo ready
while [ $n = 0 ]; do sleep 0.01; done
sleep 0.5
echo interrupts $n
exit 3`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var said strings.Builder
	for lines := bufio.NewScanner(ours); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "ready") {
			ours.Write([]byte{3}) // Ctrl-C
		}
		if strings.Contains(lines.Text(), "interrupts") {
			break
		}
	}
	cmd.Wait()
	if got := said.String(); !strings.Contains(got, "ready") || !strings.Contains(got, "interrupts 1") {
		t.Errorf("%q", got)
	}
	if status := cmd.ProcessState.ExitCode(); status != 3 && status != -1 && status != 130 { // shells on the way heard it, too
		t.Errorf("exit status %d", status)
	}
}

// testRunKilled: when run is killed the program ends too, with all that it has started,
// and the next one finds nothing in its way.
func testRunKilled(t *testing.T, a *agent) {
	cmd := a.asNobody(t.Context(), "pilotctl", "run", "--wait", "0s", "--", "sh", "-c", `sleep 1000 & (setsid sleep 1000 &); trap '' TERM; (setsid sleep 1000 &); echo ready; exec sleep 1000`)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := syscall.Kill(a.process(t, "run"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The program and its children have the other end of the pipe, and two of the four ignore SIGTERM.
	ended := make(chan error, 1)
	go func() { _, err := out.Read(make([]byte, 1)); ended <- err }()
	select {
	case err := <-ended:
		if err != io.EOF {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the program lives on")
	}
	t.Logf("a program that ignores SIGTERM ended %v after run was killed", time.Since(begin).Round(time.Millisecond))
	cmd.Wait()
	if o := finish(t, a.asNobody(t.Context(), "pilotctl", "run", "--wait", "0s", "--", "true")); o.status != 0 {
		t.Error(o)
	}
}

// testRunNotAllowed: where namespaces or the device are not to be had, it says what
// to change.
func testRunNotAllowed(t *testing.T, l *lab, a *agent) {
	private := anyDevice + "chmod 600 /dev/net/tun;"
	as := []string{"setpriv", "--reuid", itoa(nobody), "--regid", itoa(nobody), "--clear-groups", "pilotctl", "run", "--", "true"}
	wantRefusal(t, finish(t, a.prepared(t.Context(), private, as...)), 8, "/dev/net/tun", "hint: ", "chmod 666")
	carol := l.agent(t, "a2", "carol")
	none := `echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all pilotctl run -- true`
	wantRefusal(t, carol.run(t, "unshare", "-Ur", "sh", "-c", none), 8, "does not let this user make namespaces", "hint: ", "user.max_user_namespaces")
}
