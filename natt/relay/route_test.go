package relay

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/nattest"
)

// A testProxy is an HTTP proxy on loopback that knows CONNECT.
type testProxy struct {
	*httptest.Server
	password string // USER:PASSWORD; empty: nobody is asked
	uses     atomic.Int32
}

func newProxy(t *testing.T, secure bool, password string) *testProxy {
	p := &testProxy{password: password}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	if secure {
		p.StartTLS()
	} else {
		p.Start()
	}
	t.Cleanup(p.Close)
	return p
}

func (p *testProxy) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	if p.password != "" && r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(p.password)) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	up, err := net.Dial("tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	p.uses.Add(1)
	io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		io.Copy(up, rw)
		up.Close()
	}()
	io.Copy(down, up)
}

// at is the proxy as HTTPS_PROXY names it.
func (p *testProxy) at(t *testing.T, user string) *url.URL {
	t.Helper()
	text := p.URL
	if user != "" {
		text = strings.Replace(text, "://", "://"+user+"@", 1)
	}
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (p *testProxy) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.Certificate())
	return pool
}

func TestCarrierThroughProxy(t *testing.T) {
	for name, c := range map[string]struct {
		secure         bool
		password, user string
	}{
		"plain":         {false, "", ""},
		"password":      {false, "me:secret", "me:secret"},
		"TLS, password": {true, "me:secret", "me:secret"},
	} {
		t.Run(name, func(t *testing.T) {
			server, accepted := carrierServer(t, carrierQueue)
			p := newProxy(t, c.secure, c.password)
			cfg := DialConfig{Server: server}
			if c.secure {
				cfg.CA = p.pool()
			}
			remote := netip.MustParseAddrPort(server.HostPort())
			a, err := DialCarrier(context.Background(), cfg, Route{Port: server.Port, Proxy: p.at(t, c.user)}, remote)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b := <-accepted
			defer b.Close()
			if _, err := a.WriteBatch([]natt.Message{{Buf: []byte("hello"), Addr: remote}}); err != nil {
				t.Fatal(err)
			}
			if d := nattest.Collect(t, b, 1)[0]; string(d.Data) != "hello" {
				t.Errorf("%q", d.Data)
			}
			if p.uses.Load() != 1 {
				t.Errorf("%d connections through the proxy", p.uses.Load())
			}
		})
	}
}

// What is wrong with a proxy is said in words that help, and never a password.
func TestProxyRefuses(t *testing.T) {
	open := newProxy(t, false, "")
	closed := newProxy(t, false, "me:secret")
	secure := newProxy(t, true, "")
	say := func(text string) *url.URL { // a proxy that says this and no more
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					http.ReadRequest(bufio.NewReader(c))
					io.WriteString(c, text)
					io.Copy(io.Discard, c)
				}()
			}
		}()
		return &url.URL{Scheme: "http", Host: l.Addr().String()}
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	server, _ := carrierServer(t, carrierQueue)
	for name, c := range map[string]struct {
		proxy *url.URL
		port  uint16
		want  string
	}{
		"asks for a password": {closed.at(t, ""), server.Port, "407: it wants a user and password"},
		"wrong password":      {closed.at(t, "me:wrong"), server.Port, "407: it refuses the user and password"},
		"hangs":               {say(""), server.Port, "no answer"},
		"forbids":             {say("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), server.Port, "it refuses a connection to 127.0.0.1"},
		"talks first":         {say("HTTP/1.1 200 OK\r\n\r\nand more"), server.Port, "data that nobody asked for"},
		"is no proxy":         {say("SSH-2.0-x\r\n"), server.Port, "its answer to CONNECT"},
		"endless header":      {say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), server.Port, "its answer to CONNECT"},
		"cannot reach it":     {open.at(t, ""), 1, "it refuses a connection to 127.0.0.1:1: 502"},
		"unknown certificate": {secure.at(t, ""), server.Port, "certificate"},
		"is not there":        {&url.URL{Scheme: "http", Host: dead.Addr().String()}, server.Port, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := DialConfig{Server: server, Timeout: 10 * time.Second}
			if c.want == "no answer" {
				cfg.Timeout = 500 * time.Millisecond
			}
			_, err := DialCarrier(context.Background(), cfg, Route{Port: c.port, Proxy: c.proxy}, netip.MustParseAddrPort(server.HostPort()))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.proxy.Host) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "wrong") {
				t.Errorf("the error has the password: %v", err)
			}
			t.Log(err)
		})
	}
}

func TestProxyFor(t *testing.T) {
	server := crypto.Server{Host: "server.example", Port: 3478}
	for env, want := range map[httpproxy.Config]string{
		{HTTPSProxy: "http://me:pw@proxy:3128"}:                              "http://me:pw@proxy:3128",
		{HTTPSProxy: "proxy:3128"}:                                           "http://proxy:3128",
		{HTTPSProxy: "http://proxy:3128", NoProxy: ".example"}:               "",
		{HTTPSProxy: "http://proxy:3128", NoProxy: "server.example:443,x.y"}: "http://proxy:3128",
		{}: "",
	} {
		u, err := ProxyFor(env.ProxyFunc(), server)
		got := ""
		if u != nil {
			got = u.String()
		}
		if err != nil || got != want {
			t.Errorf("%+v: %q, %v, want %q", env, got, err, want)
		}
	}
	for _, bad := range []string{"socks5://me:secret@proxy:1080", "http://me:secret@proxy:port"} {
		env := httpproxy.Config{HTTPSProxy: bad}
		if u, err := ProxyFor(env.ProxyFunc(), server); u != nil || err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", bad, u, err)
		}
	}
	if u, err := ProxyFor(nil, server); u != nil || err != nil {
		t.Error(u, err)
	}
}

// Routes race: the first that works wins, a refusal does not cost the wait, and
// what opens too late is closed.
func TestRace(t *testing.T) {
	routes := []Route{{Port: 1}, {Port: 2}, {Port: 3}}
	late := make(chan uint16, 3)
	hang := func(ctx context.Context, r Route) (uint16, error) {
		switch r.Port {
		case 1:
			<-ctx.Done()
			return 1, nil // too late
		case 2:
			return 0, errors.New("refused")
		}
		return r.Port, nil
	}
	start := time.Now()
	got, err := race(context.Background(), routes, hang, func(p uint16) { late <- p })
	if got != 3 || err != nil || time.Since(start) < RungWait {
		t.Errorf("%d, %v after %v", got, err, time.Since(start))
	}
	if p := <-late; p != 1 {
		t.Errorf("closed %d", p)
	}
	fail := func(_ context.Context, r Route) (uint16, error) {
		if r.Port == 2 {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, errors.New("refused")
	}
	if _, err := race(context.Background(), routes, fail, nil); !errors.Is(err, io.ErrUnexpectedEOF) ||
		err.Error() != "port 1: refused; port 2: unexpected EOF; port 3: refused" {
		t.Errorf("%v", err)
	}
	tried := 0
	word := func(_ context.Context, r Route) (uint16, error) {
		tried++
		return 0, ErrNotFound
	}
	if _, err := race(context.Background(), routes, word, nil); !errors.Is(err, ErrNotFound) || tried != 1 {
		t.Errorf("%v after %d", err, tried)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	stuck := func(ctx context.Context, _ Route) (uint16, error) {
		<-ctx.Done()
		return 0, errors.New("no answer")
	}
	if _, err := race(ctx, routes, stuck, nil); err == nil || err.Error() != "port 1: no answer" {
		t.Errorf("%v", err)
	}
}
