package overlay

import (
	"bufio"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/natlab"
)

// via waits until an agent reaches its server that way.
func (a *agent) via(way string) {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" reaches the server by "+way, func() bool {
		s := a.Status().Servers[0]
		return s.Via == way && s.State == "registered"
	})
}

// An agent behind a firewall without UDP registers by TLS, within a second of its
// start, and is reached there; data goes both ways, and mail too.
func TestUDPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		w.net.CutUDP(alice.router, nil)
		alice.stop()
		start := time.Now()
		alice.start()
		alice.via("tls")
		t.Logf("registered by TLS after %v", time.Since(start))
		if took := time.Since(start); took > time.Second {
			t.Errorf("registered after %v", took)
		}
		for name, pair := range map[string][2]*agent{"from inside": {alice, bob}, "from outside": {bob, alice}} {
			start := time.Now()
			got := stream(pair[0], pair[1], 500, 2*time.Millisecond)
			t.Logf("%s: %+v, %v", name, got, time.Since(start))
			if got.lost > 0 || got.twice > 0 || got.gap > time.Second {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}

// UDP is blocked in the middle of a stream of packets and comes back.
func TestUDPBlockedMidSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		for name, pair := range map[string][2]*agent{"out": {alice, bob}, "in": {bob, alice}} {
			alice.pathTo("bob", "direct")
			done := make(chan result)
			go func() { done <- stream(pair[0], pair[1], 2000, 5*time.Millisecond) }()
			pass(2 * time.Second)
			w.net.CutUDP(alice.router, nil)
			r := <-done
			t.Logf("%s: UDP blocked: gap %v, lost %d of 2000, twice %d", name, r.gap, r.lost, r.twice)
			if r.gap > 2*time.Second || r.twice != 0 {
				t.Errorf("%s: %+v", name, r)
			}
			alice.via("tls")

			go func() { done <- stream(pair[0], pair[1], 8000, 5*time.Millisecond) }()
			pass(time.Second)
			w.net.Uncut(alice.router, nil)
			back := time.Now()
			alice.via("udp")
			t.Logf("%s: UDP is back: used after %v", name, time.Since(back))
			if took := time.Since(back); took > 30*time.Second {
				t.Errorf("%s: off TLS after %v", name, took)
			}
			r = <-done
			t.Logf("%s: UDP is back: gap %v, lost %d of 8000, twice %d", name, r.gap, r.lost, r.twice)
			if r.lost != 0 || r.twice != 0 || r.gap > 100*time.Millisecond {
				t.Errorf("%s: %+v", name, r)
			}
		}
		eventually(t, "the carrier is closed", func() bool {
			n := 0
			for _, s := range alice.plane.snapshot.Load().sockets {
				if s != nil {
					n++
				}
			}
			return n == 0
		})
	})
}

// Only UDP to port 443 passes: it is used, and no stream.
func TestOnlyUDP443(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.extra = append(w.extra, 443)
		w.stop()
		w.startServer()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		alice.stop()
		inside := alice.host.Addr()
		var blocked atomic.Uint64
		w.net.Filter(func(from, to netip.AddrPort, _ []byte) bool {
			if from.Addr() == inside && to.Port() != 443 {
				blocked.Add(1)
				return false
			}
			return true
		})
		start := time.Now()
		alice.start()
		alice.via("udp-443")
		t.Logf("registered over UDP 443 after %v", time.Since(start))
		if got := stream(bob, alice, 500, 2*time.Millisecond); got.lost > 0 || got.twice > 0 {
			t.Errorf("%+v", got)
		}
		if blocked.Load() == 0 {
			t.Error("nothing was blocked")
		}
	})
}

// proxy starts an HTTP proxy in a's LAN that knows names and passes on to port 443.
func (w *world) proxy(a *agent, password string) Proxies {
	host := a.router.Host(a.cfg.Name + "-proxy")
	l := host.ListenTCP(3128)
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer down.Close()
				r, err := http.ReadRequest(bufio.NewReader(down))
				if err != nil {
					return
				}
				if want := "Basic " + base64.StdEncoding.EncodeToString([]byte(password)); r.Header.Get("Proxy-Authorization") != want {
					io.WriteString(down, "HTTP/1.1 407 No\r\n\r\n")
					return
				}
				up, err := host.DialContext(context.Background(), "tcp", r.Host)
				if err != nil || !strings.HasSuffix(r.Host, ":443") {
					io.WriteString(down, "HTTP/1.1 403 No\r\n\r\n")
					return
				}
				defer up.Close()
				io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
				go func() {
					io.Copy(up, down)
					up.Close()
				}()
				io.Copy(down, up)
			}()
		}
	}()
	u := &url.URL{Scheme: "http", Host: netip.AddrPortFrom(host.Addr(), 3128).String(), User: url.UserPassword("me", "secret")}
	return Proxies{Find: func(*url.URL) (*url.URL, error) { return u, nil }}
}

// Nothing leaves the LAN but through a proxy, which alone can resolve the name of
// the server.
func TestOnlyProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.extra = append(w.extra, 443)
		w.stop()
		w.startServer()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		alice.stop()
		w.net.Cut(alice.host, w.server)
		w.net.CutUDP(alice.host, nil)
		named := w.serverRef()
		named.Host = "server"
		alice.cfg.Servers = []crypto.Server{named}

		alice.cfg.Proxies = w.proxy(alice, "me:other")
		alice.start()
		eventually(t, "the status tells of the proxy", func() bool {
			return strings.Contains(alice.Status().Servers[0].Error, "407: it refuses the user and password")
		})
		t.Log(alice.Status().Servers[0].Error)
		alice.stop()

		alice.router.Host("spare") // another address for another proxy
		alice.cfg.Name = "alice2"
		alice.cfg.Proxies = w.proxy(alice, "me:secret")
		start := time.Now()
		alice.start()
		alice.via("proxy")
		t.Logf("registered through the proxy after %v", time.Since(start))
		if took := time.Since(start); took > 1500*time.Millisecond {
			t.Errorf("registered after %v", took)
		}
		for _, pair := range [][2]*agent{{alice, bob}, {bob, alice}} {
			if got := stream(pair[0], pair[1], 500, 2*time.Millisecond); got.lost > 0 || got.twice > 0 {
				t.Errorf("%+v", got)
			}
		}
	})
}

// The server is restarted while an agent hangs on it by TLS: it is back within
// five seconds.
func TestServerRestartOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		alice.registered()
		w.net.CutUDP(alice.router, nil)
		alice.via("tls")
		w.stop()
		pass(3 * time.Second)
		before := alice.welcomed()
		w.startServer()
		up := time.Now()
		eventually(t, "registers again", func() bool { return alice.welcomed().After(before) })
		t.Logf("back after %v", time.Since(up))
		if took := time.Since(up); took > 5*time.Second {
			t.Errorf("back after %v", took)
		}
		alice.via("tls")
	})
}
