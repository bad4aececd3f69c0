package api_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// crowd opens connections and says something on each.
func crowd(t *testing.T, socket string, n int, say func(i int) string) []net.Conn {
	t.Helper()
	list := make([]net.Conn, n)
	for i := range list {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_, err = io.WriteString(c, say(i))
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { c.Close() })
		list[i] = c
	}
	return list
}

// answers fails the test unless the daemon answers a newcomer at once.
func (d *daemon) answers(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c := api.NewClient(d.socket)
	defer c.Close()
	begin := time.Now()
	if _, err := c.ID(ctx); err != nil {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

// A local program that opens all connections there are, and asks nothing on them
// or only half of something, keeps nobody away.
func TestHostileConnections(t *testing.T) {
	t.Parallel()
	d := start(t)
	half := []string{"", "G", "GET /v1/id HTTP/1.1\r\nHost:", "POST /v1/revoke HTTP/1.1\r\nHost: pilot\r\nContent-Length: 100\r\n\r\n{"}
	for _, socket := range []string{d.socket, api.GovernPath(d.socket)} {
		crowd(t, socket, 400, func(i int) string { return half[i%len(half)] })
	}
	d.answers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := d.Reject(ctx, "carol"); err != nil {
		t.Errorf("the govern socket: %v", err)
	}
	if calls := d.agent.Calls(); len(calls) != 1 {
		t.Errorf("half requests were carried out: %q", calls)
	}
}

// Calls that last take no place from other users, and end for no newcomer of
// their own.
func TestHostileCalls(t *testing.T) {
	t.Parallel()
	d := start(t)
	const wait = `{"fingerprint":"endless"}`
	list := crowd(t, d.socket, 256, func(int) string {
		return "POST /v1/wait HTTP/1.1\r\nHost: pilot\r\nContent-Length: 25\r\n\r\n" + wait
	})
	for end := time.Now().Add(30 * time.Second); len(d.agent.Calls()) < len(list); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d calls came", len(d.agent.Calls()), len(list))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := d.ID(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("one more of the same user: %v, want a refusal", err)
	}
	for i, c := range list {
		c.SetReadDeadline(time.Now())
		if _, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Fatalf("call %d was ended: %v", i, err)
		}
	}
	list[0].Close()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if _, err := d.ID(ctx); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("after one had gone: %v", err)
		}
	}
	d.Client.Close()
	crowd(t, d.socket, 1, func(int) string {
		return "POST /v1/wait HTTP/1.1\r\nHost: pilot\r\nContent-Length: 25\r\n\r\n" + wait
	})
	if out, err := asNobody(t, d.socket, 0o666); err != nil || !strings.Contains(out, `"ok":true`) {
		t.Errorf("another user: %v: %s", err, out)
	}
}

// asNobody asks the daemon who it is, as a user without rights, after the socket
// was given that mode.
func asNobody(t *testing.T, socket string, mode os.FileMode) (string, error) {
	t.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil || os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root on Linux, and curl")
	}
	if err := os.Chmod(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, mode); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(curl, "-sS", "-m", "5", "--unix-socket", socket, "http://pilot/v1/id")
	c.Dir, c.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	return string(out), err
}

// Another user of the machine comes to neither socket.
func TestHostileUser(t *testing.T) {
	t.Parallel()
	d := start(t)
	for socket, mode := range map[string]os.FileMode{d.socket: 0o660, api.GovernPath(d.socket): 0o600} {
		if out, err := asNobody(t, socket, mode); err == nil || strings.Contains(out, `"ok"`) {
			t.Errorf("%s: %v: %s", socket, err, out)
		}
	}
	if out, err := asNobody(t, d.socket, 0o666); err != nil {
		t.Errorf("the control, with the socket open to all: %v: %s", err, out)
	}
}

// The use socket asked for what widens or ends the agent's exposure, in all the
// spellings that a router could mistake.
func TestHostileUseSocket(t *testing.T) {
	t.Parallel()
	d := start(t)
	for _, call := range []string{"approve", "reject", "block", "invite", "down"} {
		for _, path := range []string{"/v1/" + call, "/v1/" + call + "/", "/v1//" + call, "/v1/./" + call, "/v1/id/../" + call,
			"/V1/" + call, "/v1/" + strings.ToUpper(call), "/v1/%" + "61" + call[1:], "/v1/" + call + "?x=1", "//v1/" + call, "/v1/id?/../" + call} {
			for _, method := range []string{"POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "post"} {
				status, answer := raw(t, d.socket, method, path, `{"peer":"carol","ports":"all"}`)
				if status == 200 && !strings.HasPrefix(path, "/v1/id?") {
					t.Errorf("%s %s: %s", method, path, answer)
				}
			}
		}
	}
	if calls := d.agent.Calls(); len(calls) > 0 {
		t.Errorf("the agent was asked: %q", calls)
	}
	if _, err := d.ID(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if got := code(t, api.NewClient(d.socket).Revoke(t.Context(), "bob")); got != "" {
		t.Errorf("revoke is a matter of use: %s", got)
	}
}

// Names of a megabyte are refused before the agent hears of them, in every call.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	d := start(t)
	long := strings.Repeat("a", 1<<20)
	govern := api.GovernPath(d.socket)
	for path, body := range map[string]string{
		"/v1/approve": `{"peer":"carol","as":"` + long + `"}`, "/v1/block": `{"peer":"` + long + `"}`, "/v1/reject": `{"peer":"` + long + `"}`,
		"/v1/invite": `{"for":"` + long + `"}`, "/v1/request": `{"contact":"` + long + `","reason":"` + long + `"}`, "/v1/accept": `{"token":"` + long + `"}`,
		"/v1/ping": `{"peer":"` + long + `"}`, "/v1/wait": `{"fingerprint":"` + long + `"}`, "/v1/serve": `{"kind":"` + long + `"}`,
	} {
		status, answer := raw(t, govern, "POST", path, body)
		if status != 400 || len(answer) > 1000 {
			t.Errorf("%s: %d, %d bytes", path, status, len(answer))
		}
	}
	if calls := d.agent.Calls(); len(calls) > 0 {
		t.Errorf("the agent was asked %d times", len(calls))
	}
}

// A socket, a link or a file that another user put where ours are to be: the
// daemon does not start, and touches nothing.
func TestHostileSquatter(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, make := range map[string]func(path string) error{
		"a socket": func(path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { l.Close() })
				err = os.Chown(path, 65534, 65534)
			}
			return err
		},
		"a link to a socket of ours": func(path string) error {
			d := start(t)
			return os.Symlink(d.socket, path)
		},
		"a link to nothing": func(path string) error { return os.Symlink("/nonexistent/x", path) },
		"a fifo":            func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"a directory":       func(path string) error { return os.Mkdir(path, 0o777) },
	} {
		for _, file := range []string{"pilot.sock", "govern.sock"} {
			dir := socketDir(t)
			if err := make(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			s, err := api.Listen(filepath.Join(dir, "pilot.sock"))
			if err == nil {
				s.Close()
			}
			if got := code(t, err); got != overlay.CodeConflict {
				t.Errorf("%s at %s: %v", name, file, err)
			}
			after, err := os.Lstat(filepath.Join(dir, file))
			if list, _ := os.ReadDir(dir); err != nil || !os.SameFile(before, after) || len(list) != 1 {
				t.Errorf("%s at %s was touched: %v, %v", name, file, err, list)
			}
		}
	}
}
