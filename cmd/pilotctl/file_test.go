package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/api/apitest"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/exchange"
)

// A fileLab is alice's pilotctl, with her own exchange and bob's; bob is reached
// while bobAt is set.
type fileLab struct {
	*testing.T
	dir, work string
	agent     *apitest.Agent
	alice     *exchange.Exchange
	bobDir    string
	bobAt     string
	cut       int64 // bytes after which a connection to bob breaks, once
}

func newFileLab(t *testing.T) *fileLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &fileLab{T: t, dir: dir, work: t.TempDir(), agent: apitest.New(), bobDir: filepath.Join(t.TempDir(), "bob")}
	l.agent.Me.Peers[0].Out = "1001"
	peer := func(name, fp string) services.Peer {
		f, err := crypto.ParseFingerprint(fp)
		if err != nil {
			t.Fatal(err)
		}
		return services.Peer{Name: name, Fingerprint: f}
	}
	alice, bob := peer("alice", apitest.AliceFingerprint), peer("bob", apitest.BobFingerprint)
	open := func(dir string, other services.Peer) *exchange.Exchange {
		x, err := exchange.New(exchange.Config{Dir: dir, Quota: 20 << 20,
			Peer: func(fp crypto.Fingerprint) (services.Peer, bool) { return other, fp == other.Fingerprint },
			Dial: func(ctx context.Context, _ services.Peer) (net.Conn, error) { return l.dial(ctx, "tcp", "") }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x
	}
	l.alice = open(filepath.Join(dir, "exchange"), bob)
	theirs := open(l.bobDir, alice)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.bobAt = listener.Addr().String()
	sockets, err := api.Listen(filepath.Join(dir, "pilot.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(api.Config{Agent: l.agent, Logger: slog.New(slog.DiscardHandler), Stop: func() {},
		Mounts: map[string]http.Handler{exchange.OwnerPath: l.alice.Owner()}})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.Run(ctx, sockets) }()
	go func() {
		ended <- theirs.Serve(ctx, listener, func(netip.Addr) (services.Peer, bool) { return alice, true })
	}()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *fileLab) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	if l.bobAt == "" {
		return nil, errors.New("no route to host")
	}
	c, err := new(net.Dialer).DialContext(ctx, network, l.bobAt)
	if err == nil && l.cut > 0 {
		c, l.cut = &cutConn{Conn: c, left: l.cut}, 0
	}
	return c, err
}

// A cutConn breaks after some bytes.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) spend(n int) error {
	if c.left -= int64(n); c.left < 0 {
		c.Conn.Close()
		return errors.New("the connection is cut")
	}
	return nil
}

func (c *cutConn) Write(p []byte) (int, error) {
	if err := c.spend(len(p)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, errors.Join(err, c.spend(n))
}

// call runs pilotctl; moments, tags and random names are replaced by words.
func (l *fileLab) call(args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	p := &program{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: noEnvironment, dial: l.dial,
		now:     func() time.Time { return apitest.Start() },
		newNode: func(overlay.Config) (node, error) { return nil, errors.New("no node in this test") },
		lookup:  fakeLookup,
	}
	args = slices.Clone(args)
	for i, a := range args {
		if rest, ok := strings.CutPrefix(a, "./"); ok {
			args[i] = filepath.Join(l.work, rest)
		}
	}
	status = p.run(l.Context(), append([]string{"pilotctl", "--state-dir", l.dir}, args...))
	return l.hide(out.String()), l.hide(errs.String()), status
}

func (l *fileLab) hide(s string) string {
	s = strings.NewReplacer(l.dir, "$STATE", l.work, "$WORK").Replace(s)
	for pattern, word := range map[string]string{
		`"\d{4}-\d\d-\d\dT[^"]*Z"`:    `"TIME"`,
		`\\"[0-9a-f]+-[0-9a-f]+\\"`:   `TAG`,
		`\b[0-9a-f]{32}\b`:            `ID`,
		`\b127\.0\.0\.1:\d+\b`:        `BOB`,
		`(less than 1 s|\d+ \w+) ago`: `AGO`,
	} {
		s = regexp.MustCompile(pattern).ReplaceAllString(s, word)
	}
	return s
}

func (l *fileLab) write(name, text string) string {
	l.Helper()
	path := filepath.Join(l.work, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
	return path
}

// TestFileCommands runs a story, of which every step is in one golden file.
func TestFileCommands(t *testing.T) {
	l := newFileLab(t)
	l.write("report.txt", "the report\n")
	l.write("other.txt", "another\n")
	os.MkdirAll(filepath.Join(l.bobDir, "share", "all"), 0o700)
	os.WriteFile(filepath.Join(l.bobDir, "share", "all", "offer.txt"), []byte("an offer\n"), 0o600)
	var got strings.Builder
	step := func(args ...string) {
		line := strings.Join(args, " ")
		stdout, stderr, status := l.call(args...)
		fmt.Fprintf(&got, "$ pilotctl %s\n%s", line, stdout)
		if stderr != "" {
			fmt.Fprintf(&got, "-- stderr --\n%s", stderr)
		}
		if status != 0 {
			fmt.Fprintf(&got, "-- exit %d --\n", status)
		}
	}
	both := func(args ...string) {
		step(args...)
		step(append(args, "--json")...)
	}
	step("file")
	step("file", "--help")
	step("file", "cp", "./report.txt", "bob:")
	both("file", "cp", "./report.txt", "./other.txt", "bob:")
	both("file", "cp", "./other.txt", "bob:report.txt")
	step("file", "cp", "./other.txt", "bob:report.txt", "--force")
	step("send-file", "bob", "./other.txt")
	step("file", "cp", "./other.txt", "0:0000.0000.0200")
	for _, to := range []string{"bob", "dave:", "inbox:", "bob:../x", "bob:CON"} {
		step("file", "cp", "./report.txt", to)
	}
	step("file", "cp", "./nothing", "bob:")
	step("file", "cp", ".", "bob:dir")
	step("file", "cp", "bob:")
	both("file", "ls", "bob")
	both("file", "get", "bob:offer.txt", "./got.txt")
	step("file", "get", "bob:offer.txt", "./got.txt")
	step("file", "get", "bob:offer.txt", "./got.txt", "--force")
	step("file", "get", "bob:offer.txt", "-")
	step("file", "get", "bob:nothing")
	step("file", "get", "bob:")
	both("file", "inbox")
	step("file", "inbox", "--wait", "--timeout", "10ms")
	both("file", "ls", "share")
	step("file", "cp", "./report.txt", "share:")
	both("file", "cp", "./report.txt", "share:bob/for-bob.txt")
	both("file", "ls", "share")
	step("file", "rm", "share:report.txt", "share:bob/for-bob.txt")
	step("file", "rm", "share:report.txt")
	step("file", "rm", "bob:report.txt")
	both("file", "ls", "queue")
	l.bobAt = ""
	both("file", "cp", "./report.txt", "bob:later.txt", "--patience", "0s")
	both("file", "cp", "./report.txt", "bob:later.txt", "--queue")
	both("file", "ls", "queue")
	step("file", "rm", "queue:none")
	l.agent.Me.Peers[0].Out = "80"
	step("file", "ls", "bob")
	compare(t, "file", got.String())
	if text, err := os.ReadFile(filepath.Join(l.work, "got.txt")); err != nil || string(text) != "an offer\n" {
		t.Errorf("%q %v", text, err)
	}
}

func TestFileInbox(t *testing.T) {
	l := newFileLab(t)
	srv, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fp, _ := crypto.ParseFingerprint(apitest.BobFingerprint)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- l.alice.Serve(ctx, srv, func(netip.Addr) (services.Peer, bool) { return services.Peer{Name: "bob", Fingerprint: fp}, true })
	}()
	defer func() {
		stop()
		<-ended
	}()
	bob := exchange.NewClient("http://"+srv.Addr().String(), nil)
	defer bob.Close()
	waited := make(chan string)
	go func() {
		stdout, _, _ := l.call("file", "inbox", "--wait")
		waited <- stdout
	}()
	id, err := bob.Message(ctx, "text/plain", []byte("hello alice"))
	if err != nil {
		t.Fatal(err)
	}
	if got := <-waited; !strings.Contains(got, "bob") || !strings.Contains(got, "message text/plain") {
		t.Errorf("%q", got)
	}
	if stdout, stderr, status := l.call("file", "get", "inbox:bob/"+id, "-"); stdout != "hello alice" || status != 0 {
		t.Errorf("%q %q %d", stdout, stderr, status)
	}
	if _, stderr, status := l.call("file", "rm", "inbox:"+id); status != 0 {
		t.Errorf("%q %d", stderr, status)
	}
	if stdout, _, _ := l.call("file", "inbox"); stdout != "the inbox is empty\n" {
		t.Errorf("%q", stdout)
	}
}

func TestFileTransfersGoOn(t *testing.T) {
	l := newFileLab(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 9<<20/16)
	l.write("big.bin", string(big))
	l.cut = 5 << 20
	if stdout, stderr, status := l.call("file", "cp", "./big.bin", "bob:"); status != 0 || l.cut != 0 {
		t.Fatalf("%q %q %d", stdout, stderr, status)
	}
	os.WriteFile(filepath.Join(l.bobDir, "share", "all", "big.bin"), big, 0o600)
	l.cut = 3 << 20
	_, stderr, status := l.call("file", "get", "bob:big.bin", "./back.bin", "--patience", "0s")
	part, _ := filepath.Glob(filepath.Join(l.work, ".pilot-*.part"))
	if status != exitStatus(overlay.CodePeerOffline) || len(part) != 1 {
		t.Fatalf("%q %d %v", stderr, status, part)
	}
	if info, err := os.Stat(part[0]); err != nil || info.Size() < 1<<20 {
		t.Errorf("%v %v", info, err)
	}
	l.cut = 7 << 20 // enough for the rest only
	if _, stderr, status := l.call("file", "get", "bob:big.bin", "./back.bin", "--patience", "0s"); status != 0 {
		t.Fatalf("%q %d", stderr, status)
	}
	if got, err := os.ReadFile(filepath.Join(l.work, "back.bin")); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if part, _ := filepath.Glob(filepath.Join(l.work, ".pilot-*.part")); len(part) != 0 {
		t.Errorf("left over: %v", part)
	}
	// A part that is not what it should be is not taken.
	os.WriteFile(part[0], []byte("other bytes"), 0o600)
	os.Remove(filepath.Join(l.work, "back.bin"))
	if _, stderr, status := l.call("file", "get", "bob:big.bin", "./back.bin"); status != 1 || !strings.Contains(stderr, "SHA-256") {
		t.Errorf("%q %d", stderr, status)
	}
	if _, err := os.Stat(filepath.Join(l.work, "back.bin")); err == nil {
		t.Error("a wrong file got its name")
	}
}
