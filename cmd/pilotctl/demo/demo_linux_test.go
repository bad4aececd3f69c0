package demo_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/cmd/pilotctl/demo/lab"
	"golang.org/x/sys/unix"
)

const mostSeconds = 45 // that the demo may take

// build makes the real program.
func build(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "pilotctl")
	cmd := exec.Command("go", "build", "-o", exe, "github.com/pilotnet/pilot/cmd/pilotctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return exe
}

// skip gives a reason why the demo cannot be tested here.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
		t.Fatalf("PILOT_REQUIRE_ROOT=1, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// needRoot skips a test where namespaces or a TUN device are not to be had.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "this needs root")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		skip(t, "this needs a TUN device: %v", err)
	}
	tun.Close()
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if err := probe.Run(); err != nil {
		skip(t, "this needs the right to make namespaces: %v", err)
	}
}

// untouched returns a check that the demo run by exe left nothing: no process, no
// device, no mount, no file in temp, and the machine's hosts file as it was.
func untouched(t *testing.T, exe, temp string) func() {
	t.Helper()
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if now, err := os.ReadFile("/etc/hosts"); err != nil || !bytes.Equal(now, hosts) {
			t.Errorf("/etc/hosts has changed (%v):\n%s", err, now)
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", temp, left, err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || bytes.Contains(mounts, []byte(temp)) {
			t.Errorf("a mount is left (%v):\n%s", err, mounts)
		}
		for _, name := range []string{"isp-a", "isp-b", "wan", "lan", "lan1", "lan2"} {
			if _, err := os.Stat("/sys/class/net/" + name); err == nil {
				t.Errorf("the device %s is left", name)
			}
		}
		if left := processes(t, exe); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	}
}

// processes are those that run exe.
func processes(t *testing.T, exe string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && strings.HasPrefix(at, exe) {
			found = append(found, filepath.Dir(link))
		}
	}
	return found
}

// program is the demo as a user runs it, with temporary files in temp.
func program(exe, temp string, args ...string) *exec.Cmd {
	cmd := exec.Command(exe, append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "http_proxy=http://192.0.2.99:1", "PILOT_NAME=nobody")
	return cmd
}

// told are lines that the transcript must have, in this order.
var told = []string{
	`^server\$ pilotctl server run .*&$`,
	`^--server rendezvous\.example#[a-z2-7]{52}$`,
	`^alice\$ pilotctl up --name alice --server 'rendezvous\.example#[a-z2-7]{52}'$`,
	`^alice is up$`,
	`sees us as 198\.51\.100\.2:`,
	`^bob\$ pilotctl up --name bob --server `,
	`^bob is up$`,
	`sees us as 203\.0\.113\.2:`,
	`^bob\$ pilotctl id `,
	`^  contact +0:0000\..*@rendezvous\.example$`,
	`^alice\$ pilotctl trust request '0:0000\..*' --reason '.*' --ports 8080$`,
	`^bob\$ pilotctl trust pending$`,
	`^request from alice$`,
	`^bob\$ pilotctl trust approve alice$`,
	`^alice is trusted$`,
	`^alice\$ pilotctl ping bob -c 1$`,
	`^reply from bob .* path=relay endpoint=192\.0\.2\.10:3478 `,
	`^alice\$ pilotctl ping bob --until-direct `,
	`^reply from bob .* path=direct endpoint=203\.0\.113\.2:`,
	`^alice\$ .*http://bob\.pilot\.internal:8080/$`,
	`^Hello from bob's plain web server\. You come from fd50:494c:4f54::`,
	`^bob .* direct `,
	`^mallory\$ pilotctl demo knock 10\.2\.0\.2:`,
	`^1000 datagrams sent, 0 bytes came back$`,
	`counters: 10[0-9][0-9] datagrams arrived`,
	`^reply from bob .* path=direct `,
	`^bob\$ pilotctl trust revoke alice$`,
	`^alice\$ .*http://bob\.pilot\.internal:8080/$`,
	`^\(exit status [1-9]`,
	`^# That was all`,
}

const mostLines = 95

func checkTranscript(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(text, "\n")
	if len(lines) > mostLines {
		t.Errorf("the transcript has %d lines, want at most %d", len(lines), mostLines)
	}
	if strings.Contains(text, "\x1b") {
		t.Error("the transcript has escapes, and this is no terminal")
	}
	at := 0
	for _, want := range told {
		re := regexp.MustCompile(want)
		for at < len(lines) && !re.MatchString(lines[at]) {
			at++
		}
		if at == len(lines) {
			t.Fatalf("no line matches %s, after those before it:\n%s", want, text)
		}
		at++
	}
}

// TestDemo runs the real program in all the ways in which a demo can go.
func TestDemo(t *testing.T) {
	needRoot(t)
	exe := build(t)
	t.Run("root", func(t *testing.T) { testRoot(t, exe) })
	t.Run("user", func(t *testing.T) { testUser(t, exe) })
	t.Run("end", func(t *testing.T) { testEnd(t, exe) })
}

// testRoot tells the story as it is told by "make demo".
func testRoot(t *testing.T, exe string) {
	temp := t.TempDir()
	check := untouched(t, exe, temp)
	cmd := program(exe, temp)
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("pilotctl demo: %v\n%s", err, out)
	}
	if took := time.Since(begun).Seconds(); took > mostSeconds {
		t.Errorf("the demo took %.1f s, want less than %d s", took, mostSeconds)
	} else {
		t.Logf("the demo took %.1f s", took)
	}
	checkTranscript(t, string(out))
	check()
}

// testUser runs the demo in a user namespace, without curl, keeps it, looks around,
// and takes it down.
func testUser(t *testing.T, exe string) {
	u := newUser(t, exe)
	check := untouched(t, u.exe, u.temp)
	u.refused(t)
	out, err := u.run("--keep")
	if err != nil && strings.Contains(out, "does not let this user make namespaces") {
		t.Skipf("user namespaces are not to be had here: %s", out)
	}
	if err != nil {
		t.Fatalf("pilotctl demo --keep: %v\n%s", err, out)
	}
	defer u.run("down")
	checkTranscript(t, out)
	if out, err := u.run("enter", "alice", "--", "pilotctl", "id"); err != nil || !strings.HasPrefix(out, "alice\n") {
		t.Errorf("pilotctl id on alice: %v\n%s", err, out)
	}
	out, err = u.run("enter", "bob", "--", "sh", "-c", "cat /etc/hosts; exit 7")
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(out, "bob.pilot.internal") {
		t.Errorf("bob's hosts file, then exit 7: %v\n%s", err, out)
	}
	if out, err := u.run("enter", "router-a"); err == nil {
		t.Errorf("entered a router: %s", out)
	}
	if out, err := u.run("down"); err != nil || out != "the demo is down\n" {
		t.Errorf("pilotctl demo down: %v\n%s", err, out)
	}
	if out, err := u.run("down"); err != nil || out != "no demo was up\n" {
		t.Errorf("pilotctl demo down, once more: %v\n%s", err, out)
	}
	check()
}

// A user is somebody without rights on this machine, but with a TUN device that
// everybody may open, as most systems have it, and without curl.
type user struct {
	exe, temp, path string
	tun             string // the device's file
	host            *lab.Host
}

const nobody = 65534

func newUser(t *testing.T, exe string) user {
	t.Helper()
	// Not below t.TempDir, into which only root may look.
	dir, err := os.MkdirTemp("", "pilot-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u := user{exe: filepath.Join(dir, "pilotctl"), temp: filepath.Join(dir, "tmp"), path: filepath.Join(dir, "bin")}
	u.tun = filepath.Join(dir, "tun")
	err = errors.Join(os.Chmod(dir, 0o755), os.Link(exe, u.exe), os.Mkdir(u.temp, 0o755), os.Chown(u.temp, nobody, nobody),
		os.Mkdir(u.path, 0o755), unix.Mknod(u.tun, unix.S_IFCHR, int(unix.Mkdev(10, 200))), os.Chmod(u.tun, 0o666))
	if err != nil {
		t.Skipf("cannot make a place for an ordinary user: %v", err)
	}
	for _, name := range []string{"sh", "cat", "grep", "tail"} {
		at, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(u.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if u.host, err = lab.NewHost("user"); err != nil {
		t.Fatal(err)
	}
	if err := u.host.Cover("/dev/net/tun", u.tun); err != nil {
		t.Fatal(err)
	}
	return u
}

// refused runs the demo where the user may not open the TUN device.
func (u user) refused(t *testing.T) {
	t.Helper()
	if err := os.Chmod(u.tun, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := u.run()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 8 || !strings.Contains(out, "sudo make demo") {
		t.Errorf("without the right to open the TUN device: %v, want exit status 8\n%s", err, out)
	}
	if err := os.Chmod(u.tun, 0o666); err != nil {
		t.Fatal(err)
	}
}

func (u user) run(args ...string) (string, error) {
	cmd := program(u.exe, u.temp, args...)
	cmd.Env = append(cmd.Env, "PATH="+u.path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := u.host.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// testEnd ends the demo by signals while programs run in the background.
func testEnd(t *testing.T, exe string) {
	for _, test := range []struct {
		signal syscall.Signal
		after  string // a line that begins so
		status int
	}{
		{syscall.SIGINT, "alice is up", 130},
		{syscall.SIGTERM, "--server ", 130},
		{syscall.SIGKILL, "--server ", -1},
	} {
		t.Run(fmt.Sprint(test.signal), func(t *testing.T) {
			temp := t.TempDir()
			check := untouched(t, exe, temp)
			cmd := program(exe, temp)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for lines.Scan() && !strings.HasPrefix(lines.Text(), test.after) {
			}
			cmd.Process.Signal(test.signal)
			io.Copy(io.Discard, out)
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("exit status %d, want %d", got, test.status)
			}
			if test.signal == syscall.SIGKILL {
				awaitEnd(t, exe, temp)
			}
			check()
		})
	}
}

// awaitEnd waits until the kernel has ended what a killed demo ran, and until "down"
// has found what it left in temp.
func awaitEnd(t *testing.T, exe, temp string) {
	t.Helper()
	late := time.After(10 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if out, err := program(exe, temp, "down").CombinedOutput(); err != nil {
			t.Errorf("pilotctl demo down: %v\n%s", err, out)
		}
		left, err := os.ReadDir(temp)
		if err == nil && len(left) == 0 && len(processes(t, exe)) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Errorf("a killed demo has left %v and %v", left, processes(t, exe))
			return
		}
	}
}
