package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/api/apitest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A daemon is a server over real sockets.
type daemon struct {
	*api.Client
	socket string
	agent  *apitest.Agent
	log    *lockedBuffer
	stop   context.CancelFunc
	ended  chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func start(t testing.TB) *daemon {
	t.Helper()
	d := &daemon{socket: filepath.Join(socketDir(t), "pilot.sock"), agent: apitest.New(), log: &lockedBuffer{}, ended: make(chan error, 1)}
	sockets, err := api.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	d.stop = stop
	s := api.NewServer(api.Config{Agent: d.agent, Logger: slog.New(slog.NewTextHandler(d.log, nil)), Stop: stop})
	go func() { d.ended <- s.Run(ctx, sockets) }()
	t.Cleanup(func() { stop(); <-d.ended })
	d.Client = api.NewClient(d.socket)
	return d
}

// socketDir is short enough for a socket address, whatever the test is called.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// raw sends what no Client would.
func raw(t *testing.T, socket, method, path, body string) (status int, answer string) {
	t.Helper()
	h := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	r, err := http.NewRequest(method, "http://pilot"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	a, err := h.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

func code(t *testing.T, err error) overlay.Code {
	t.Helper()
	if err == nil {
		return ""
	}
	return api.AsError(err).Code
}

// The bytes on the socket are the interface: they are compared as they are.
func TestGolden(t *testing.T) {
	d := start(t)
	d.agent.Granted = true
	govern := api.GovernPath(d.socket)
	for _, c := range []struct{ name, socket, method, path, body string }{
		{"id", d.socket, "GET", "/v1/id", ""},
		{"status", d.socket, "GET", "/v1/status", ""},
		{"peers", d.socket, "GET", "/v1/peers", ""},
		{"pending", d.socket, "GET", "/v1/pending", ""},
		{"outgoing", d.socket, "GET", "/v1/outgoing", ""},
		{"whois", d.socket, "GET", "/v1/whois?addr=%5Bfd50:494c:4f54::200%5D:4711", ""},
		{"whois_stranger", d.socket, "GET", "/v1/whois?addr=::1", ""},
		{"served", d.socket, "GET", "/v1/served", ""},
		{"serve", d.socket, "POST", "/v1/serve", `{"kind":"http","target":"3000","port":80}`},
		{"unserve", d.socket, "POST", "/v1/unserve", `{"port":80}`},
		{"unserve_nothing", d.socket, "POST", "/v1/unserve", `{"port":81}`},
		{"request", d.socket, "POST", "/v1/request", `{"contact":"0:0000.0000.0200#x@rdv","reason":"r"}`},
		{"wait", d.socket, "POST", "/v1/wait", `{"fingerprint":"` + apitest.BobFingerprint + `"}`},
		{"accept", d.socket, "POST", "/v1/accept", `{"token":"t"}`},
		{"revoke", d.socket, "POST", "/v1/revoke", `{"peer":"bob"}`},
		{"revoke_nobody", d.socket, "POST", "/v1/revoke", `{"peer":"dave"}`},
		{"revoke_unsaid", d.socket, "POST", "/v1/revoke", `{}`},
		{"ping", d.socket, "POST", "/v1/ping", `{"peer":"bob","seq":1}`},
		{"approve_by_use", d.socket, "POST", "/v1/approve", `{"peer":"carol"}`},
		{"approve", govern, "POST", "/v1/approve", `{"peer":"carol","ports":"all"}`},
		{"reject", govern, "POST", "/v1/reject", `{"peer":"carol"}`},
		{"invite", govern, "POST", "/v1/invite", `{"ports":"80","ttl":3600000000000}`},
		{"invites", d.socket, "GET", "/v1/invites", ""},
		{"invites_end", govern, "POST", "/v1/invites/end", `{"id":"0123"}`},
		{"withdraw", govern, "POST", "/v1/withdraw", "{}"},
		{"withdraw_by_use", d.socket, "POST", "/v1/withdraw", "{}"},
		{"confirm_nothing", govern, "POST", "/v1/confirm", "{}"},
		{"confirm_by_use", d.socket, "POST", "/v1/confirm", "{}"},
		{"misspelt", govern, "POST", "/v1/approve", `{"peer":"carol","port":"80"}`},
		{"two_objects", d.socket, "POST", "/v1/revoke", `{"peer":"bob"}{}`},
		{"no_body", d.socket, "POST", "/v1/revoke", ""},
		{"unknown", d.socket, "GET", "/v2/status", ""},
		{"wrong_method", d.socket, "GET", "/v1/revoke", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, got := raw(t, c.socket, c.method, c.path, c.body)
			got = http.StatusText(status) + "\n" + got
			file := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEmptyListsAreNotNull(t *testing.T) {
	d := start(t)
	d.agent.Me, d.agent.Sent = overlay.Status{}, nil
	for range 2 {
		for _, path := range []string{"/v1/status", "/v1/peers", "/v1/pending", "/v1/outgoing"} {
			if _, got := raw(t, d.socket, "GET", path, ""); strings.Contains(got, "null") {
				t.Errorf("%s: %s", path, got)
			}
		}
		d.agent.Sent = make([]overlay.Request, 1)
	}
}

func TestClient(t *testing.T) {
	d := start(t)
	ctx := t.Context()
	status, err := d.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.agent.Me, status); diff != "" {
		t.Error(diff)
	}
	ports, ttl := "80", time.Hour
	if _, err := d.Approve(ctx, overlay.ApproveOptions{Peer: "carol", As: "c", Ports: &ports, TTL: &ttl}); err != nil {
		t.Error(err)
	}
	if token, err := d.Invite(ctx, overlay.InviteOptions{Ports: "80", TTL: time.Hour}); err != nil || token == "" {
		t.Error(token, err)
	}
	for _, err := range []error{d.Revoke(ctx, "bob"), d.Reject(ctx, "carol"), d.Block(ctx, "carol")} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Whois(ctx, "[fd50:494c:4f54::200]:80"); err != nil {
		t.Error(err)
	}
	if s, err := d.Serve(ctx, overlay.ServeOptions{Kind: "http", Target: "3000", Port: 80, Allow: []string{"bob"}}); err != nil || s.Port != 80 {
		t.Error(s, err)
	}
	if s, err := d.Served(ctx); err != nil || len(s) != 3 {
		t.Error(s, err)
	}
	if err := d.Unserve(ctx, 80); err != nil {
		t.Error(err)
	}
	if got := code(t, d.Revoke(ctx, "nobody")); got != overlay.CodeNotFound {
		t.Errorf("revoke of nobody: %q", got)
	}
	want := []string{
		`approve carol as="c" ports=80 ttl=1h0m0s`, `invite ports="80" ttl=1h0m0s for="" name="" uses=0 trust=0s`,
		"revoke bob", "reject carol", "block carol", "whois [fd50:494c:4f54::200]:80",
		`serve http 3000 port=80 allow=["bob"]`, "unserve 80", "revoke nobody",
	}
	if diff := cmp.Diff(want, d.agent.Calls()); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	d := start(t)
	for _, c := range []overlay.Code{
		overlay.CodeInvalidArgument, overlay.CodeNotFound, overlay.CodeNotTrusted, overlay.CodeTrustPending, overlay.CodePeerOffline,
		overlay.CodeTimeout, overlay.CodeDenied, overlay.CodeNoTUN, overlay.CodeIPv6Disabled, overlay.CodeConflict, overlay.CodeQuota, overlay.CodeInternal,
	} {
		want := overlay.Errorf(c, "because").WithHint("do this").Retry()
		d.agent.Answers["ping"] = want
		_, err := d.Ping(t.Context(), "bob", 1, time.Second)
		if diff := cmp.Diff(want, api.AsError(err)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	d := start(t)
	_, err := d.Wait(t.Context(), apitest.BobFingerprint, time.Millisecond)
	if e := api.AsError(err); e.Code != overlay.CodeTrustPending || !e.Retryable {
		t.Errorf("wait that ran out: %+v", e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Wait(ctx, apitest.BobFingerprint, time.Minute); code(t, err) != overlay.CodeTimeout {
		t.Errorf("caller that gave up: %v", err)
	}
	done := make(chan error)
	go func() { _, err := d.Wait(t.Context(), "endless", 0); done <- err }()
	for len(d.agent.Calls()) < 3 {
		d.ID(t.Context())
	}
	d.stop() // a long wait does not hold up the end of the daemon
	if err := <-done; err == nil {
		t.Error("a wait across the end of the daemon succeeded")
	}
}

func TestLargeBodyRefused(t *testing.T) {
	d := start(t)
	status, answer := raw(t, d.socket, "POST", "/v1/revoke", `{"peer":"`+strings.Repeat("a", 1<<20)+`"}`)
	if status != http.StatusBadRequest || !strings.Contains(answer, `"invalid_argument"`) || len(answer) > 1000 {
		t.Errorf("%d %.200s", status, answer)
	}
	if calls := d.agent.Calls(); len(calls) > 0 {
		t.Errorf("the agent was asked: %.80s", calls)
	}
	if status, _ := raw(t, d.socket, "GET", "/v1/whois?addr="+strings.Repeat("a", 1<<20), ""); status/100 != 4 {
		t.Errorf("long address: %d", status)
	}
}

func TestDown(t *testing.T) {
	d := start(t)
	pid, err := d.Down(t.Context())
	if err != nil || pid != os.Getpid() {
		t.Fatal(pid, err)
	}
	if err := <-d.ended; err != nil {
		t.Error(err)
	}
	d.ended <- nil
	for _, path := range []string{d.socket, api.GovernPath(d.socket)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if _, err := d.ID(t.Context()); code(t, err) != overlay.CodeNotRunning || api.AsError(err).Hint != "pilotctl up" {
		t.Errorf("after down: %v", err)
	}
	if log := d.log.String(); !strings.Contains(log, `msg="govern call" path=/v1/down`) ||
		(runtime.GOOS == "linux" && !strings.Contains(log, "uid=")) {
		t.Errorf("log: %s", log)
	}
}

func TestSocketRights(t *testing.T) {
	d := start(t)
	for path, want := range map[string]os.FileMode{d.socket: 0o660, api.GovernPath(d.socket): 0o600} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s: %v, want %v", path, info.Mode().Perm(), want)
		}
	}
}

func TestGovernPath(t *testing.T) {
	for socket, want := range map[string]string{
		"/run/pilot/pilot.sock": "/run/pilot/govern.sock",
		"/tmp/alice.sock":       "/tmp/alice.govern.sock",
		"/tmp/odd":              "/tmp/odd.govern.sock",
		"pilot.sock":            "govern.sock",
	} {
		if got := api.GovernPath(socket); got != want {
			t.Errorf("%s: %s, want %s", socket, got, want)
		}
	}
}

// leave makes a socket file that nobody listens on, as a killed daemon does.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListen(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		want    overlay.Code
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"stale sockets", func(t *testing.T, dir string) {
			leave(t, filepath.Join(dir, "pilot.sock"))
			leave(t, filepath.Join(dir, "govern.sock"))
		}, ""},
		{"live socket", func(t *testing.T, dir string) {
			s, err := api.Listen(filepath.Join(dir, "pilot.sock"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
		}, overlay.CodeConflict},
		{"symbolic link", func(t *testing.T, dir string) {
			leave(t, filepath.Join(dir, "other.sock"))
			if err := os.Symlink("other.sock", filepath.Join(dir, "govern.sock")); err != nil {
				t.Fatal(err)
			}
		}, overlay.CodeConflict},
		{"plain file", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "pilot.sock"), []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, overlay.CodeConflict},
		{"somebody else's socket", func(t *testing.T, dir string) {
			if os.Getuid() != 0 {
				t.Skip("needs root")
			}
			leave(t, filepath.Join(dir, "pilot.sock"))
			if err := os.Chown(filepath.Join(dir, "pilot.sock"), 12345, -1); err != nil {
				t.Fatal(err)
			}
		}, overlay.CodeConflict},
		{"directory open to all", func(t *testing.T, dir string) {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, overlay.CodeDenied},
		{"sticky directory open to all", func(t *testing.T, dir string) {
			if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := socketDir(t)
			c.prepare(t, dir)
			s, err := api.Listen(filepath.Join(dir, "pilot.sock"))
			if err == nil {
				s.Close()
			}
			if got := code(t, err); got != c.want {
				t.Errorf("got %q (%v), want %q", got, err, c.want)
			}
			if c.want == "" {
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			}
		})
	}
}

func TestCloseKeepsAnothersFile(t *testing.T) {
	dir := socketDir(t)
	socket := filepath.Join(dir, "pilot.sock")
	s, err := api.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Lstat(socket); err != nil {
		t.Error(err)
	}
}

func TestRemoveStale(t *testing.T) {
	dir := socketDir(t)
	socket := filepath.Join(dir, "pilot.sock")
	if err := api.RemoveStale(filepath.Join(dir, "none", "pilot.sock")); err != nil {
		t.Error(err)
	}
	leave(t, socket)
	if err := api.RemoveStale(socket); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Error("still there")
	}
}

func TestLongPath(t *testing.T) {
	_, err := api.Listen("/tmp/" + strings.Repeat("d", 100) + "/pilot.sock")
	if e := api.AsError(err); e.Code != overlay.CodeInvalidArgument || !strings.Contains(e.Hint, "--socket") {
		t.Errorf("%+v", e)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := socketDir(t)
	socket := filepath.Join(dir, "pilot.sock")
	c := api.NewClient(socket)
	if _, err := c.Status(t.Context()); code(t, err) != overlay.CodeNotRunning {
		t.Errorf("no file: %v", err)
	}
	leave(t, socket)
	if _, err := c.Status(t.Context()); code(t, err) != overlay.CodeNotRunning {
		t.Errorf("stale file: %v", err)
	}
}

func TestForeignServer(t *testing.T) {
	socket := filepath.Join(socketDir(t), "pilot.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"schema":2}`) })}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
	if _, err := api.NewClient(socket).Status(t.Context()); code(t, err) != overlay.CodeInternal {
		t.Error(err)
	}
}

func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl on this machine")
	}
	d := start(t)
	out, err := exec.Command(curl, "-sS", "--unix-socket", d.socket, "http://pilot/v1/id").Output()
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Schema int
		OK     bool
		Data   overlay.ID
	}
	if err := json.Unmarshal(out, &e); err != nil || !e.OK || e.Schema != 1 || e.Data.Name != "alice" {
		t.Errorf("%s: %v", out, err)
	}
}
