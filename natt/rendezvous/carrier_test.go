package rendezvous

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/nattest"
	"github.com/pilotnet/pilot/natt/relay"
)

// carrier opens one to the server.
func carrier(t testing.TB, server crypto.Server) (*relay.Carrier, error) {
	t.Helper()
	c, err := relay.DialCarrier(context.Background(), relay.DialConfig{Server: server}, relay.Route{Port: server.Port}, serverAddr(server))
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// An agent at home by TLS and a visitor by UDP talk, in both directions; then the
// agent moves to UDP, and what it had sent by TLS still arrives.
func TestCarrierRelays(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	c, err := carrier(t, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	in := make(chan []byte, 100)
	go func() {
		m := make([]natt.Message, c.BatchSize())
		for i := range m {
			m[i].Buf = make([]byte, natt.MaxRun)
		}
		for {
			n, err := c.ReadBatch(m)
			if err != nil {
				return
			}
			for i := range m[:n] {
				for d := range nattest.Datagrams(&m[i]) {
					in <- append([]byte(nil), d...)
				}
			}
		}
	}()
	send := func(b []byte) {
		t.Helper()
		if _, err := c.WriteBatch([]natt.Message{{Buf: b, Addr: serverAddr(r.addr)}}); err != nil {
			t.Fatal(err)
		}
	}
	next := func() []byte {
		t.Helper()
		for {
			for _, b := range bob.home.Advance(time.Now()) {
				send(b)
			}
			select {
			case b := <-in:
				if b[0] == relay.TypeFrame {
					return b
				}
				events, err := bob.home.Receive(time.Now(), b)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					if e.Kind == relay.Registered {
						return nil
					}
				}
			case <-time.After(patience):
				t.Fatal("nothing comes through the carrier")
			}
		}
	}
	next() // registered
	if got := bob.home.Observed(); got != c.LocalAddr() {
		t.Errorf("seen as %v, is %v", got, c.LocalAddr())
	}

	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	conn := dialUDP(t)
	say := func(b []byte) {
		t.Helper()
		if _, err := conn.WriteToUDPAddrPort(b, serverAddr(r.addr)); err != nil {
			t.Fatal(err)
		}
	}
	hear := func() []byte {
		t.Helper()
		b := make([]byte, 2048)
		conn.SetReadDeadline(time.Now().Add(patience))
		n, _, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
	b, err := v.Open(time.Now(), []byte("\x04INIT"))
	if err != nil {
		t.Fatal(err)
	}
	say(b)
	if err := v.Receive(time.Now(), hear()); err != nil {
		t.Fatal(err)
	}
	ours, inner, _ := relay.ParseFrame(next())
	if string(inner) != "\x04INIT" {
		t.Fatalf("bob got %q", inner)
	}
	frame := func(channel uint64, inner string) []byte {
		b := make([]byte, relay.FrameOverhead)
		relay.PutFrameHeader(b, channel)
		return append(b, inner...)
	}
	send(frame(ours, "\x05RESP"))
	if _, inner, _ := relay.ParseFrame(hear()); string(inner) != "\x05RESP" {
		t.Fatalf("the visitor got %q", inner)
	}
	say(frame(v.Channel(), "\x06one"))
	if _, inner, _ := relay.ParseFrame(next()); string(inner) != "\x06one" {
		t.Fatalf("bob got %q", inner)
	}

	// Bob moves to UDP. Frames by TLS pass on for a while, frames to him go by UDP.
	bob.home.Kick(time.Now())
	bob.until(relay.Registered)
	send(frame(ours, "\x06late"))
	if _, inner, _ := relay.ParseFrame(hear()); string(inner) != "\x06late" {
		t.Fatalf("the visitor got %q", inner)
	}
	say(frame(v.Channel(), "\x06two"))
	if f := bob.receive(); f.inner != "\x06two" {
		t.Fatalf("bob got %q", f.inner)
	}
	// A third one that knows the number of the channel gets nothing through.
	other, err := carrier(t, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteBatch([]natt.Message{{Buf: frame(ours, "\x06forged"), Addr: serverAddr(r.addr)}}); err != nil {
		t.Fatal(err)
	}
	if d := nattest.Collect(t, other, 1)[0]; d.Data[0] != relay.TypeHint {
		t.Errorf("a stranger's frame is answered by type %d", d.Data[0])
	}
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := conn.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
		t.Errorf("the visitor got %d bytes from a stranger", n)
	}
}

func TestCarrierLimit(t *testing.T) {
	t.Parallel()
	limits := testLimits()
	limits.Carriers = 2
	r := start(t, Config{StateDir: t.TempDir(), Limits: limits})
	var open []*relay.Carrier
	for range 2 {
		c, err := carrier(t, r.addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := carrier(t, r.addr); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a third one: %v", err)
	}
	newAgent(t, "alice", r.addr).control().Close() // there is room for control
	open[0].Close()
	for deadline := time.Now().Add(patience); ; {
		if _, err := carrier(t, r.addr); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Carriers that bring nothing, or messages that never end, are closed; those of
// agents that send their keepalives are not.
func TestCarrierIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lab := natlab.New(natlab.Config{})
		defer lab.Close()
		host, client := lab.Host("rdv"), lab.Host("client")
		key, err := crypto.GenerateDH()
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{Key: key, Store: NewMemoryStore(), Limits: testLimits(), Public: host.Addr().String(),
			UDP: []natt.PacketConn{host.Listen(3478)}, TCP: []net.Listener{host.ListenTCP(3478)}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		server := crypto.Server{Host: host.Addr().String(), Port: 3478, Key: key.Public()}
		remote := netip.AddrPortFrom(host.Addr(), 3478)
		open := func() *relay.Carrier {
			c, err := relay.DialCarrier(ctx, relay.DialConfig{Server: server, DialContext: client.DialContext}, relay.Route{Port: 3478}, remote)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
				for {
					if _, err := c.ReadBatch(m); err != nil {
						return
					}
				}
			}()
			return c
		}
		silent, busy := open(), open()
		for range 40 {
			if _, err := busy.WriteBatch([]natt.Message{{Buf: []byte("keepalive"), Addr: remote}}); err != nil {
				t.Fatal(err)
			}
			<-time.After(20 * time.Second)
		}
		if silent.Err() == nil || busy.Err() != nil {
			t.Errorf("silent: %v, busy: %v", silent.Err(), busy.Err())
		}
		<-time.After(carrierIdle + 30*time.Second)
		if busy.Err() == nil {
			t.Error("a carrier that has fallen silent is still open")
		}
		last := open()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		<-time.After(time.Second)
		if last.Err() == nil {
			t.Error("the carrier outlives the server")
		}
	})
}

// What the server shows in TLS is what it says inside Noise; a proxy that shows
// another certificate is named.
func TestInspectedTLS(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	c := dial(t, relay.DialConfig{Server: r.addr})
	if w := c.TLSWarning(); !strings.HasPrefix(w, "self-signed") {
		t.Errorf("warning %q", w)
	}
	cert, key, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // the inspecting proxy
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer down.Close()
				up, err := tls.Dial("tcp", r.addr.HostPort(), &tls.Config{InsecureSkipVerify: true})
				if err != nil {
					return
				}
				defer up.Close()
				go io.Copy(up, down)
				io.Copy(down, up)
			}()
		}
	}()
	inspect := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	c = dial(t, relay.DialConfig{Server: r.addr, DialContext: inspect})
	if w := c.TLSWarning(); !strings.Contains(w, `issued by "pilot rendezvous"`) || !strings.HasPrefix(w, "inspected on the way") {
		t.Errorf("warning %q", w)
	}
	if _, err := c.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}

// shown is the certificate that a server shows.
func shown(t *testing.T, r running, name string) string {
	t.Helper()
	c, err := tls.Dial("tcp", r.addr.HostPort(), &tls.Config{InsecureSkipVerify: true, ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return string(c.ConnectionState().PeerCertificates[0].Raw)
}

func TestOwnCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(at time.Time) {
		t.Helper()
		cert, key, err := selfSigned(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{certFile: cert, keyFile: key} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(time.Now().Add(-time.Hour))
	now := time.Now()
	clock := make(chan time.Duration, 1) // how far the clock is ahead
	clock <- 0
	ahead := func(d time.Duration) time.Duration {
		old := <-clock
		clock <- old + d
		return old + d
	}
	r := start(t, Config{StateDir: t.TempDir(), CertFile: certFile, CertKeyFile: keyFile, Now: func() time.Time { return now.Add(ahead(0)) }})
	first := shown(t, r, "x.example")
	if w := dial(t, relay.DialConfig{Server: r.addr}).TLSWarning(); !strings.HasPrefix(w, "self-signed") {
		t.Errorf("warning %q", w)
	}
	write(time.Now())
	if shown(t, r, "") != first {
		t.Error("the files are read at every connection")
	}
	ahead(lookAtFiles)
	second := shown(t, r, "")
	if second == first {
		t.Error("a changed file is not read")
	}
	if err := os.WriteFile(certFile, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	ahead(lookAtFiles)
	if shown(t, r, "") != second {
		t.Error("a damaged file displaces a good certificate")
	}
	s, err := New(Config{StateDir: t.TempDir(), Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, CertFile: filepath.Join(dir, "missing"), CertKeyFile: keyFile})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// Without its authority, ACME leaves the server with the self-signed certificate.
func TestACMEUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s, err := New(Config{StateDir: t.TempDir(), ACME: "server.example", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Ready: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	s.acmeDirectory = "http://" + l.Addr().String() + "/directory"
	c, err := s.certificates()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c.obtain(ctx)
	for _, name := range []string{"server.example", "other.example", ""} {
		cert, err := c.config().GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{"http/1.1"}})
		if err != nil || cert != c.own {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := s.closeAll(); err != nil {
		t.Error(err)
	}
}
