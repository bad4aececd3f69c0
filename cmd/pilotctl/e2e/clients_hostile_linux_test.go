package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestHostilePeer: alice has a grant and means ill. What she sends is refused in
// clear words; bob's daemon is unharmed, holds no more memory for it, and carol
// is served meanwhile.
func TestHostilePeer(t *testing.T) {
	t.Parallel()
	l := wire(t, "a1", "b1", "a2")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	const ports = "7,1001-1003,8080,8443,9999"
	trust(t, alice, bob, ports, "--offer", "9999")
	trust(t, carol, bob, ports)
	l.hostileTarget(t, bob.host)
	for _, p := range []string{"http 3000 8080", "tcp 3000 8443", "a2a 3000 9999"} {
		f := strings.Fields(p)
		bob.pilot(t, "serve", f[0], f[1], "--port", f[2])
	}
	daemon := bob.daemon()
	unharmed := func(t *testing.T) {
		t.Helper()
		if now := bob.daemon(); now != daemon {
			t.Fatalf("bob's daemon was %d and is %d", daemon, now)
		}
		l.served(t, carol)
	}
	unharmed(t)
	idle := rssAnon(t, daemon)

	t.Run("files", func(t *testing.T) { testHostileFiles(t, alice, bob); unharmed(t) })
	t.Run("large file", func(t *testing.T) { l.testLargeFile(t, alice, daemon) })
	t.Run("card", func(t *testing.T) {
		o := alice.run(t, "curl", "-sS", "-m", "10", "-w", "%{http_code}", "http://bob.pilot.internal:9999/.well-known/agent-card.json")
		if !strings.HasSuffix(o.stdout, "502") || len(o.stdout) > 1000 {
			t.Errorf("%.1000s", o)
		}
		t.Log(o)
		unharmed(t)
	})
	t.Run("card of a peer", func(t *testing.T) { l.testLongCard(t, alice, bob) })
	t.Run("half a packet of MQTT", func(t *testing.T) { l.testHalfPackets(t, alice, bob); unharmed(t) })
	t.Run("half a request", func(t *testing.T) {
		held := l.hold(t, alice, bob)
		unharmed(t)
		t.Logf("%d of %d connections are open, RssAnon of bob's daemon: %d KiB, idle %d KiB", held(), len(servicePorts)*halfOpen, rssAnon(t, daemon), idle)
		if now := rssAnon(t, daemon); now > idle+96<<10 {
			t.Errorf("RssAnon grew from %d to %d KiB", idle, now)
		}
	})
	t.Run("half a handshake", func(t *testing.T) {
		// The host believes that it is connected; bob's waits for its third packet.
		l.output(t, alice.host, "nft", "add table ip6 half; add chain ip6 half out { type filter hook output priority 0; }; add rule ip6 half out tcp flags & (syn|rst|fin|ack) == ack drop")
		l.hold(t, alice, bob)
		unharmed(t)
		if now := rssAnon(t, daemon); now > idle+96<<10 {
			t.Errorf("RssAnon grew from %d to %d KiB", idle, now)
		}
		l.output(t, alice.host, "nft", "delete table ip6 half")
	})
	t.Run("afterwards", func(t *testing.T) {
		unharmed(t)
		t.Logf("RssAnon %d KiB, before %d KiB", rssAnon(t, daemon), idle)
		within(t, 20*time.Second, "alice is served as others", func() bool {
			return alice.run(t, "curl", "-sS", "--fail", "-m", "5", "http://bob.pilot.internal:8080/page").stdout == page
		})
	})
}

// hostileTarget is a program of bob's with a page and a long card.
func (l *lab) hostileTarget(t *testing.T, host string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, page) })
	mux.Handle("/.well-known/", longCard())
	s := &http.Server{Handler: mux}
	go s.Serve(l.listen(t, host, "127.0.0.1:3000"))
	t.Cleanup(func() { s.Close() })
}

// longCard serves an agent card whose description has more than a megabyte.
func longCard() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"name":"long","url":"http://localhost:3000/","description":%q}`, strings.Repeat("long ", 250_000))
	})
}

// served fails the test unless each service answers.
func (l *lab) served(t *testing.T, a *agent) {
	t.Helper()
	for _, url := range []string{"http://bob.pilot.internal:8080/page", "http://bob.pilot.internal:8443/page", "http://bob.pilot.internal:1001/v1/", "http://bob.pilot.internal:1002/", "http://bob.pilot.internal:1003/.well-known/agent-card.json"} {
		if o := a.run(t, "curl", "-sS", "--fail", "-m", "10", url); o.status != 0 {
			t.Errorf("%s is not served: %s", a.name, o)
		}
	}
	testEcho(t, a)
}

// rssAnon is how much memory a process holds that is no file's, in KiB.
func rssAnon(t *testing.T, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fmt.Sscan(n, &kib)
		}
	}
	return kib
}

// testHostileFiles: too much, and names that lead elsewhere.
func testHostileFiles(t *testing.T, alice, bob *agent) {
	base := "http://bob.pilot.internal:1001/v1/"
	before := tree(t, bob.state)
	curl := func(want, text string, args ...string) {
		t.Helper()
		o := alice.run(t, append([]string{"curl", "-sS", "-m", "10", "--path-as-is", "-w", "\n%{http_code}"}, args...)...)
		if !strings.HasSuffix(o.stdout, "\n"+want) || !strings.Contains(o.stdout, text) {
			t.Errorf("curl %.200q: %.500s, want %s and %q", args, o, want, text)
		}
	}
	put := []string{"-X", "PUT", "--data-binary", "x"}
	length := func(n string, path string) []string {
		return append(slices.Clone(put), "-H", "Content-Length: "+n, "-H", "Expect: 100-continue", base+path)
	}
	curl("413", "quota", length("1073741825", "files/huge")...)
	curl("413", "quota", length("9223372036854775807", "files/huge")...)
	curl("413", "", "-X", "POST", "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Length: 2000000000", "-H", "Upload-Metadata: filename aHVnZQ==", base+"uploads/")
	for _, name := range []string{"..%2f..%2fidentity", "%2e%2e", "..", "%2fetc%2fpasswd", "a%00b", "..%5c..%5cidentity", "%c0%ae%c0%ae%2fx", strings.Repeat("n", 300)} {
		curl("400", "", append(slices.Clone(put), base+"files/"+name)...)
	}
	curl("400", "path separator", append(slices.Clone(put), base+"files/../../identity")...)
	// ../../identity, in base64
	curl("400", "", "-X", "POST", "-H", "Tus-Resumable: 1.0.0", "-H", "Upload-Length: 5", "-H", "Upload-Metadata: filename Li4vLi4vaWRlbnRpdHk=", base+"uploads/")
	if after := tree(t, bob.state); !slices.Equal(before, after) {
		t.Errorf("files before: %v\nafter: %v", before, after)
	}
}

// testLongCard: alice's own agent has a card of a megabyte.
func (l *lab) testLongCard(t *testing.T, alice, bob *agent) {
	s := &http.Server{Handler: longCard()}
	go s.Serve(l.listen(t, alice.host, "[::]:9999"))
	t.Cleanup(func() { s.Close() })
	o := bob.run(t, "pilotctl", "task", "send", "alice", "--port", "9999", "hello")
	if o.status == 0 || !strings.Contains(o.stderr, "card is larger than") {
		t.Errorf("exit status %d: %.1000s", o.status, o)
	}
	t.Log(o)
}

// testHalfPackets: a SUBSCRIBE that ends anywhere, among others after 8 bytes,
// ends the connection and nothing else.
func (l *lab) testHalfPackets(t *testing.T, alice, bob *agent) {
	connect := []byte("\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01h")
	subscribe := []byte("\x00\x01\x00\x00\x08public/#\x01")
	for n := range len(subscribe) {
		c := l.dial(t, alice.host, "tcp", bob.reach(t, "1002"))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(connect); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 64)
		if _, err := c.Read(answer); err != nil || answer[0] != 0x20 {
			t.Fatalf("instead of CONNACK: %x, %v", answer[:2], err)
		}
		c.Write(append([]byte{0x82, byte(n)}, subscribe[:n]...))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes of a SUBSCRIBE: the connection stays open", n+2)
		}
		c.Close()
	}
}

// testLargeFile: memory does not grow with the size of what comes in, which is the
// whole quota with PILOT_LONG=1.
func (l *lab) testLargeFile(t *testing.T, alice *agent, daemon int) {
	size := int64(128 << 20)
	if os.Getenv("PILOT_LONG") == "1" {
		size = 1 << 30
	}
	path := filepath.Join(l.dir, "large")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	idle, most, samples := rssAnon(t, daemon), 0, 0
	begin := time.Now()
	c := alice.command(t.Context(), "curl", "-sS", "--fail", "-T", path, "http://bob.pilot.internal:1001/v1/files/large")
	ended := make(chan error, 1)
	go func() { ended <- c.Run() }()
	poll(t.Context(), 5*time.Minute, func() bool {
		most, samples = max(most, rssAnon(t, daemon)), samples+1
		return len(ended) > 0
	})
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB in %v: RssAnon %d KiB before, at most %d KiB (%d samples)", size>>20, time.Since(begin).Round(time.Millisecond), idle, most, samples)
	if most > idle+32<<10 {
		t.Errorf("RssAnon grew from %d to %d KiB", idle, most)
	}
}

// tree lists the files below a directory.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// halfOpen is how many connections are opened to each of servicePorts.
const halfOpen = 1000

var servicePorts = []string{"7", "1001", "1002", "1003", "8080", "8443", "9999"}

// hold opens them all from a to b, sends the first bytes of a request on each, and
// keeps them open until the test ends. The function says how many are open.
func (l *lab) hold(t *testing.T, a, b *agent) (open func() int) {
	t.Helper()
	ula := b.id(t).ULA
	conns := make(chan net.Conn, len(servicePorts)*halfOpen)
	const workers = 20
	var all errgroup.Group
	for range workers {
		all.Go(func() error {
			return l.enter(a.host, func() error {
				for i := range len(servicePorts) * halfOpen / workers {
					c, err := net.DialTimeout("tcp", net.JoinHostPort(ula, servicePorts[i%len(servicePorts)]), time.Second)
					if err != nil {
						continue // refused is as good
					}
					io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: bob.pilot.internal\r\nContent-")
					conns <- c
				}
				return nil
			})
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	close(conns)
	var list []net.Conn
	for c := range conns {
		list = append(list, c)
	}
	t.Cleanup(func() {
		for _, c := range list {
			c.Close()
		}
	})
	t.Logf("%d connections", len(list))
	return func() (n int) {
		for _, c := range list {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			if e, ok := err.(net.Error); err == nil || ok && e.Timeout() {
				n++
			}
		}
		return n
	}
}
