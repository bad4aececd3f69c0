package e2e_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

const (
	server443  = "192.0.2.10:443"
	gatewayOfA = "10.1.0.1:3128" // the proxy of a site of kind "proxy"
)

// blockedServer starts a server that listens on port 443 too.
func (l *lab) blockedServer(t *testing.T) *server {
	t.Helper()
	s := l.server(t)
	s.kill(t)
	s.cmd = l.on(t.Context(), "rdv", "pilotctl", "server", "run", "--listen", serverListen, "--listen", server443, "--state-dir", s.state)
	if line := l.ready(t, s.cmd); line != s.name {
		t.Fatalf("the server says --server %s, want %s", line, s.name)
	}
	return s
}

// upWith is up with variables of the environment, and more flags.
func (a *agent) upWith(t *testing.T, s *server, env []string, more ...string) outcome {
	t.Helper()
	args := append([]string{"env"}, env...)
	args = append(args, "pilotctl", "up", "--name", a.name, "--server", s.name)
	return a.run(t, append(args, more...)...)
}

// via is the way to the agent's server.
func (a *agent) via(t *testing.T) string {
	t.Helper()
	s := a.status(t).Servers[0]
	if s.State != "registered" {
		return ""
	}
	return s.Via
}

// TestBlockedUDP: agents that may send no UDP at all, or only to port 443, or only
// through a proxy, are up as fast as others and reach everybody.
func TestBlockedUDP(t *testing.T) {
	t.Parallel()
	for kind, c := range map[string]struct {
		via string
		env []string
	}{
		"udpblock": {"tls", nil},
		"web":      {"udp-443", nil},
		"proxy":    {"proxy", []string{"HTTPS_PROXY=http://" + gatewayOfA}},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, kind, "linux")
			s := l.blockedServer(t)
			alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
			bob.up(t, s)
			o := alice.upWith(t, s, c.env)
			if o.status != 0 {
				t.Fatalf("up: %s", o)
			}
			t.Logf("%s: up after %v", kind, o.took.Round(time.Millisecond))
			if got := alice.via(t); got != c.via {
				t.Errorf("reaches the server by %q, want %q: %s", got, c.via, o)
			}
			alice.pilot(t, "down")
			o = alice.upWith(t, s, c.env) // now the server knows it
			t.Logf("%s: up again after %v: %s", kind, o.took.Round(time.Millisecond), o)
			if o.status != 0 || o.took > 5*time.Second {
				t.Errorf("up again: %v: %s", o.took, o)
			}
			trust(t, alice, bob, "7000", "--offer", "7000")
			for _, pair := range [][2]*agent{{alice, bob}, {bob, alice}} {
				f := flow(t, pair[0], pair[1], 5*time.Millisecond, 2*time.Second, nil)
				t.Logf("%s to %s: %v", pair[0].name, pair[1].name, f)
				if f.lost*20 > f.sent || f.gap > time.Second {
					t.Errorf("%s to %s: %v", pair[0].name, pair[1].name, f)
				}
			}
		})
	}
}

// TestUDPIsCut: UDP is cut off in the middle of a stream of packets; it goes on by
// TLS within two seconds, and leaves TLS within thirty when UDP is back.
func TestUDPIsCut(t *testing.T) {
	t.Parallel()
	for name, inward := range map[string]bool{"sending": false, "receiving": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "linux", "linux")
			s := l.blockedServer(t)
			alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
			alice.up(t, s)
			bob.up(t, s)
			trust(t, alice, bob, "7000", "--offer", "7000")
			direct(t, alice, bob)
			from, to := alice, bob
			if inward {
				from, to = bob, alice
			}
			f := flow(t, from, to, 2*time.Millisecond, 8*time.Second, func() { l.do(t, "cut", "a:udp") })
			t.Logf("UDP cut: %v", f)
			if f.gap > 2*time.Second {
				t.Errorf("UDP cut: %v", f)
			}
			if got := alice.via(t); got != "tls" {
				t.Errorf("the way is %q", got)
			}
			var back time.Duration
			f = flow(t, from, to, 2*time.Millisecond, 38*time.Second, func() {
				l.do(t, "uncut", "a:udp")
				begin := time.Now()
				within(t, 31*time.Second, "off TLS", func() bool { return alice.via(t) == "udp" })
				back = time.Since(begin)
			})
			t.Logf("UDP back: used after %v, %v", back.Round(time.Millisecond), f)
			if f.lost*1000 > f.sent || f.gap > 500*time.Millisecond { // the machine is busy
				t.Errorf("UDP back: %v", f)
			}
		})
	}
}

// A traffic is what became of a stream of numbered packets.
type traffic struct {
	sent, lost, twice int
	gap               time.Duration // longest time without a packet
}

func (f traffic) String() string {
	return fmt.Sprintf("%d sent, %d lost, %d twice, longest gap %v", f.sent, f.lost, f.twice, f.gap.Round(time.Millisecond))
}

// flow sends packets from one agent to port 7000 of the other for some time. After
// a second it calls event.
func flow(t *testing.T, from, to *agent, every, length time.Duration, event func()) traffic {
	t.Helper()
	in := to.lab.listenUDP(t, to.host, to.reach(t, "7000"))
	defer in.Close()
	out := from.lab.dial(t, from.host, "udp", to.reach(t, "7000"))
	defer out.Close()
	var f traffic
	done := make(chan struct{})
	began := make(chan struct{})
	go func() {
		defer close(done)
		seen := map[uint32]int{}
		b := make([]byte, 100)
		last := time.Time{}
		for {
			n, err := in.Read(b)
			if err != nil {
				for _, k := range seen {
					f.twice += k - 1
				}
				f.lost = -len(seen)
				return
			}
			if n != 64 {
				continue
			}
			if last.IsZero() {
				close(began)
			} else {
				f.gap = max(f.gap, time.Since(last))
			}
			last = time.Now()
			seen[binary.BigEndian.Uint32(b)]++
		}
	}()
	stop := make(chan struct{})
	sent := make(chan int)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		b := make([]byte, 64)
		for n := 0; ; n++ {
			select {
			case <-stop:
				sent <- n
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint32(b, uint32(n))
			out.Write(b) // what fails is lost
		}
	}()
	end := time.NewTimer(length)
	defer end.Stop()
	select {
	case <-began:
	case <-end.C:
		t.Error("no packet arrives")
	}
	if event != nil {
		poll(t.Context(), time.Second, func() bool { return false })
		event()
	}
	<-end.C
	close(stop)
	f.sent = <-sent
	in.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	f.lost += f.sent
	return f
}

// TestBadProxy: what is wrong with a proxy stands in the status; one that inspects
// TLS is named and carries the agent all the same.
func TestBadProxy(t *testing.T) {
	t.Parallel()
	l := newLab(t, "proxy", "linux")
	s := l.blockedServer(t)
	at := l.address(t, "a2")
	for name, c := range map[string]struct {
		port   string
		handle func(net.Conn)
		want   string
	}{
		"asks for a password": {"3001", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		}, "407: it refuses the user and password"},
		"hangs":   {"3002", func(c net.Conn) { io.Copy(io.Discard, c) }, "no answer"},
		"forbids": {"3003", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 403 Forbidden\r\n\r\n") }, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			serveProxy(l.listen(t, "a2", at+":"+c.port), c.handle)
			alice := l.agent(t, "a1", "alice")
			defer os.RemoveAll(alice.state)
			o := alice.upWith(t, s, []string{"HTTPS_PROXY=http://me:secret@" + at + ":" + c.port}, "--wait", "8s")
			wantRefusal(t, o, 6, "proxy", at+":"+c.port, c.want)
			if strings.Contains(o.String(), "secret") || strings.Contains(alice.run(t, "cat", alice.state+"/daemon.log").stdout, "secret") {
				t.Error("the password is shown")
			}
			status := alice.status(t).Servers[0]
			if !strings.Contains(status.Error, c.want) {
				t.Errorf("status says %q", status.Error)
			}
			if text := alice.pilot(t, "netcheck"); !strings.Contains(text, c.want) || !strings.Contains(text, "no UDP") {
				t.Errorf("netcheck says %s", text)
			}
			alice.pilot(t, "down")
		})
	}
	t.Run("inspects TLS", func(t *testing.T) {
		cert := certificate(t, "Big Brother CA")
		serveProxy(l.listen(t, "a2", at+":3004"), func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			inspected := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			up, err := l.tunnel("a2", gatewayOfA, server443)
			if err != nil {
				return
			}
			defer up.Close()
			outer := tls.Client(up, &tls.Config{InsecureSkipVerify: true})
			go func() {
				io.Copy(outer, inspected)
				up.Close()
			}()
			io.Copy(inspected, outer)
		})
		alice := l.agent(t, "a1", "alice")
		if o := alice.upWith(t, s, []string{"HTTPS_PROXY=http://" + at + ":3004"}); o.status != 0 {
			t.Fatalf("up: %s", o)
		}
		var server overlay.ServerStatus
		within(t, 10*time.Second, "status names the issuer", func() bool {
			server = alice.status(t).Servers[0]
			return strings.Contains(server.TLSWarning, `inspected on the way`) && strings.Contains(server.TLSWarning, "Big Brother CA")
		})
		if server.Via != "proxy" || !server.Claimed {
			t.Errorf("%+v", server)
		}
		t.Log(alice.pilot(t, "status"))
		if text := alice.pilot(t, "netcheck"); !strings.Contains(text, `inspected on the way`) || !strings.Contains(text, "Big Brother CA") {
			t.Errorf("netcheck says %s", text)
		}
	})
}

// serveProxy reads a CONNECT from each connection and lets handle answer.
func serveProxy(n net.Listener, handle func(net.Conn)) {
	go func() {
		for {
			c, err := n.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					handle(c)
				}
			}()
		}
	}()
}

// tunnel opens a stream from a host through a proxy.
func (l *lab) tunnel(host, proxy, target string) (net.Conn, error) {
	var c net.Conn
	err := l.enter(host, func() (err error) {
		c, err = net.DialTimeout("tcp", proxy, 5*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	answer, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// certificate is one for any name, issued by an authority of that name.
func certificate(t *testing.T, authority string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: authority}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "rendezvous"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, DNSNames: []string{"rendezvous"},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
