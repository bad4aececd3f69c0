package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A lab is a proxy before an overlay that consists of one web server, known as
// bob.pilot.internal, at any port but 81.
type lab struct {
	at     string // of the proxy
	inside *httptest.Server

	mu   sync.Mutex
	next *url.URL
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{inside: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/big":
			io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{1}), 3<<20))
		case "/sum":
			h := sha256.New()
			io.Copy(h, r.Body)
			fmt.Fprintf(w, "%x", h.Sum(nil))
		default:
			fmt.Fprintf(w, "%s %s host=%s xff=%q ua=%q via=%q", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-For"), r.Header.Get("User-Agent"), r.Header.Get("Proxy-Connection"))
		}
	}))}
	t.Cleanup(l.inside.Close)
	s := New(Config{
		Inside: func(host string) bool { return strings.HasSuffix(host, ".pilot.internal") },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			switch address {
			case "bob.pilot.internal:81":
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			case "bob.pilot.internal:82":
				return nil, context.DeadlineExceeded
			}
			if !strings.HasPrefix(address, "bob.") {
				return nil, errors.New("no such peer")
			}
			return new(net.Dialer).DialContext(ctx, network, l.inside.Listener.Addr().String())
		},
		Explain: func(err error) string { return "explained: " + err.Error() },
		Next: func(*url.URL) (*url.URL, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.next, nil
		},
	})
	listener, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.at = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

// client sends requests through the proxy by HTTP or SOCKS 5.
func (l *lab) client(t *testing.T, scheme string) *http.Client {
	u := &url.URL{Scheme: scheme, Host: l.at}
	tr := &http.Transport{Proxy: http.ProxyURL(u)}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func fetch(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	return r.StatusCode, string(b)
}

func TestHTTP(t *testing.T) {
	l := newLab(t)
	c := l.client(t, "http")
	if status, text := fetch(t, c, "http://bob.pilot.internal:8080/page?x=1"); status != 200 ||
		text != `GET /page?x=1 host=bob.pilot.internal:8080 xff="" ua="Go-http-client/1.1" via=""` {
		t.Errorf("%d %s", status, text)
	}
	for url, want := range map[string]struct {
		status int
		text   string
	}{
		"http://bob.pilot.internal:81/":  {http.StatusBadGateway, "pilot: bob.pilot.internal: explained: dial tcp: connection refused\n"},
		"http://bob.pilot.internal:82/":  {http.StatusGatewayTimeout, "pilot: bob.pilot.internal: explained: context deadline exceeded\n"},
		"http://carol.pilot.internal/":   {http.StatusBadGateway, "pilot: carol.pilot.internal: explained: no such peer\n"},
		"http://127.0.0.1:1/":            {http.StatusBadGateway, ""}, // outside: the host's own network
		l.inside.URL + "/outside":        {http.StatusOK, ""},
		"http://bob.pilot.internal/sum":  {http.StatusOK, fmt.Sprintf("%x", sha256.Sum256(nil))},
		"http://bob.pilot.internal./sum": {http.StatusBadGateway, ""}, // not inside here; the node says what is
	} {
		if status, text := fetch(t, c, url); status != want.status || want.text != "" && text != want.text {
			t.Errorf("%s: %d %q, want %d %q", url, status, text, want.status, want.text)
		}
	}
}

// A stream that is larger than any buffer passes whole in both directions, by each
// way of speaking to the proxy.
func TestStreams(t *testing.T) {
	l := newLab(t)
	want := sha256.New()
	io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{1}), 3<<20))
	for _, scheme := range []string{"http", "socks5h"} {
		c := l.client(t, scheme)
		if status, text := fetch(t, c, "http://bob.pilot.internal/big"); status != 200 || sha256.Sum256([]byte(text)) != [32]byte(want.Sum(nil)) {
			t.Errorf("%s: %d, %d bytes", scheme, status, len(text))
		}
		r, err := c.Post("http://bob.pilot.internal/sum", "", io.LimitReader(rand.NewChaCha8([32]byte{1}), 3<<20))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(got) != fmt.Sprintf("%x", want.Sum(nil)) {
			t.Errorf("%s: upload: %s", scheme, got)
		}
	}
}

// CONNECT passes bytes on as they are, those that came with the request too, and
// an end in one direction.
func TestConnect(t *testing.T) {
	l := newLab(t)
	conn, err := net.Dial("tcp", l.at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprint(conn, "CONNECT bob.pilot.internal:80 HTTP/1.1\r\nHost: bob.pilot.internal:80\r\n\r\nGET /early HTTP/1.0\r\n\r\n")
	in := bufio.NewReader(conn)
	r, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("%+v, %v", r, err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(in); err != nil || !bytes.Contains(rest, []byte("GET /early")) {
		t.Errorf("%q, %v", rest, err)
	}
	for target, want := range map[string]int{"bob.pilot.internal:81": 502, "bob.pilot.internal:82": 504, "nonsense": 400} {
		if got := connectStatus(t, l.at, target); got != want {
			t.Errorf("%s: %d, want %d", target, got, want)
		}
	}
}

func connectStatus(t *testing.T, at, target string) int {
	t.Helper()
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	r, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

// What a page in a browser can send gets nothing from the proxy.
func TestNoWebServer(t *testing.T) {
	l := newLab(t)
	if status, text := fetch(t, http.DefaultClient, "http://"+l.at+"/"); status != http.StatusBadRequest || !strings.Contains(text, "not a web server") {
		t.Errorf("%d %s", status, text)
	}
	r, err := http.Post("http://"+l.at+"/http://bob.pilot.internal/", "text/plain", strings.NewReader("\x05\x01\x00"))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusBadRequest {
		t.Error(r.Status)
	}
}

// What is outside goes through the next proxy, if there is one.
func TestNextProxy(t *testing.T) {
	l, second := newLab(t), newLab(t)
	l.mu.Lock()
	l.next = &url.URL{Scheme: "http", Host: second.at, User: url.UserPassword("me", "secret")}
	l.mu.Unlock()
	outside := strings.TrimPrefix(second.inside.URL, "http://")
	for _, scheme := range []string{"http", "socks5h"} {
		c := l.client(t, scheme)
		if status, text := fetch(t, c, "http://"+outside+"/by"); status != 200 || !strings.HasPrefix(text, "GET /by") {
			t.Errorf("%s: %d %s", scheme, status, text)
		}
		if status, text := fetch(t, c, "http://bob.pilot.internal/"); status != 200 {
			t.Errorf("%s: a peer: %d %s", scheme, status, text)
		}
	}
	if conn, err := Dial(t.Context(), l.at, "bob.pilot.internal:80"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	l.mu.Lock()
	l.next = &url.URL{Scheme: "socks5", Host: second.at}
	l.mu.Unlock()
	if _, err := Dial(t.Context(), l.at, outside); err == nil {
		t.Error("through a proxy of a kind that is not known")
	}
}

// Errors of a destination come to the program as from the kernel.
func TestDial(t *testing.T) {
	l := newLab(t)
	for address, want := range map[string]error{
		"bob.pilot.internal:81":  syscall.ECONNREFUSED,
		"bob.pilot.internal:82":  syscall.ETIMEDOUT,
		"carol.pilot.internal:1": syscall.EHOSTUNREACH,
		"127.0.0.1:1":            syscall.ECONNREFUSED,
		"[::1]:1":                syscall.ECONNREFUSED,
		"bob.pilot.internal:80":  nil,
	} {
		conn, err := Dial(t.Context(), l.at, address)
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v, want %v", address, err, want)
		}
		if err == nil {
			conn.Close()
		}
	}
	if _, err := Dial(t.Context(), l.at, "no port"); err == nil {
		t.Error("no port")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, l.at, "bob.pilot.internal:80"); err == nil {
		t.Error("canceled")
	}
}

// curl is what most people will use.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs curl")
	}
	l := newLab(t)
	for _, args := range [][]string{
		{"-x", "socks5h://" + l.at}, {"-x", "socks5h://user:word@" + l.at}, {"-x", "http://" + l.at}, {"-p", "-x", "http://" + l.at},
	} {
		out, err := exec.CommandContext(t.Context(), curl, append(args, "-sS", "-m", "20", "http://bob.pilot.internal:8080/curl")...).CombinedOutput()
		if err != nil || !bytes.HasPrefix(out, []byte("GET /curl host=bob.pilot.internal:8080")) {
			t.Errorf("%v: %s, %v", args, out, err)
		}
	}
}

func TestListen(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:1080", "localhost:1080", "127.0.0.1", ""} {
		if l, err := Listen(address); !errors.Is(err, ErrNotLoopback) {
			t.Errorf("%s: %v", address, err)
			if err == nil {
				l.Close()
			}
		}
	}
}

// What is not SOCKS 5 as it should be gets no connection.
func TestSOCKSRefuses(t *testing.T) {
	l := newLab(t)
	for name, c := range map[string]struct{ send, want string }{
		"no method that is known": {"\x05\x02\x01\x03", "\x05\xff"},
		"BIND":                    {"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		"UDP":                     {"\x05\x01\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		"unknown address":         {"\x05\x01\x00\x05\x01\x00\x09", "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"},
		"empty name":              {"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", "\x05\x00"},
		"version 4 inside":        {"\x05\x01\x00\x04\x01\x00\x01", "\x05\x00"},
	} {
		conn, err := net.Dial("tcp", l.at)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, c.send)
		conn.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(conn) // may end in a reset
		conn.Close()
		if string(got) != c.want {
			t.Errorf("%s: %x, want %x", name, got, c.want)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	for _, q := range []socksRequest{
		{commandConnect, typeIPv4, "192.0.2.1", 80}, {commandConnect, typeIPv6, "2001:db8::1", 443}, {3, typeName, "bob.pilot.internal", 1}, {1, 9, "", 0},
	} {
		f.Add(q.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		q, err := readSOCKS(r)
		if err != nil {
			return
		}
		read := b[:len(b)-r.Len()]
		if again := q.append(nil); !bytes.Equal(again, read) {
			t.Errorf("%x was read as %+v, which is %x", read, q, again)
		}
	})
}
