package natlab

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// open returns the two ends of a stream from a to port 443 of server.
func open(t *testing.T, a, server *Host) (client, accepted net.Conn) {
	t.Helper()
	l := server.ListenTCP(443)
	defer l.Close()
	client, err := a.DialContext(t.Context(), "tcp", net.JoinHostPort(server.String(), "443"))
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, accepted
}

func TestStream(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		home := n.NAT(Sym, addr("203.0.113.2"))
		start := time.Now()
		c, s := open(t, home.Host("a"), n.Host("server"))
		if took := time.Since(start); took != 40*time.Millisecond {
			t.Errorf("opened after %v, want one round trip of 40 ms", took)
		}
		if from := netip.MustParseAddrPort(s.RemoteAddr().String()); from.Addr() != addr("203.0.113.2") {
			t.Errorf("the server sees %v", from)
		}
		if c.RemoteAddr().String() != s.LocalAddr().String() {
			t.Errorf("the client is connected to %v, the server has %v", c.RemoteAddr(), s.LocalAddr())
		}

		// More than the window, both ways at once.
		want := make([]byte, 3*window+11)
		for i := range want {
			want[i] = byte(i * i >> 7)
		}
		written := make(chan error, 2)
		for _, end := range []net.Conn{c, s} {
			go func() { _, err := end.Write(want); written <- err }()
		}
		got := make([]byte, len(want))
		for _, end := range []net.Conn{c, s} {
			if k, err := io.ReadFull(end, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes, %v", k, len(want), err)
			}
		}
		if err := errors.Join(<-written, <-written, c.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		c, s := open(t, n.Host("a"), n.Host("server"))
		want := bytes.Repeat([]byte("0123456789abcdef"), 3*window/16)
		go func() {
			if _, err := c.Write(want); err != nil {
				t.Error(err)
			}
			c.Close()
		}()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
		}
		s.Close()
		for _, end := range []net.Conn{c, s} {
			if _, err := end.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write after Close: %v", err)
			}
			if err := end.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("second Close: %v", err)
			}
		}
	})
}

func TestStreamDelay(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		c, s := open(t, n.Host("a"), n.Host("server"))
		start := time.Now()
		if _, err := c.Write([]byte("x")); err != nil || time.Since(start) != 0 {
			t.Errorf("Write returned %v after %v", err, time.Since(start))
		}
		if _, err := s.Read(make([]byte, 9)); err != nil || time.Since(start) != 20*time.Millisecond {
			t.Errorf("Read returned %v after %v", err, time.Since(start))
		}
	})
}

func TestStreamDeadlines(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		c, s := open(t, n.Host("a"), n.Host("server"))
		start := time.Now()
		if err := c.SetReadDeadline(start.Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var timeout net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != 3*time.Second {
			t.Errorf("Read returned %v after %v", err, time.Since(start))
		}
		// A reader that waits already sees a new deadline.
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
		synctest.Wait()
		if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read returned %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write returned %v", err)
		}
		// A full window makes the writer wait for its deadline; then both go on.
		if err := s.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if k, err := s.Write(make([]byte, 2*window)); k != window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write took %d, %v", k, err)
		}
		if err := errors.Join(c.SetDeadline(time.Time{}), s.SetDeadline(time.Now().Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		if k, err := io.ReadFull(c, make([]byte, window)); k != window || err != nil {
			t.Errorf("read %d, %v", k, err)
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	})
}

func TestDialFails(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		a, server := n.Host("a"), n.Host("server")
		hidden := n.NAT(Full, addr("203.0.113.2"))
		hidden.Host("hidden").ListenTCP(443)
		start := time.Now()
		if _, err := a.DialContext(t.Context(), "tcp", "server:443"); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) != 40*time.Millisecond {
			t.Errorf("a port nobody listens on: %v after %v", err, time.Since(start))
		}
		var unknown *net.DNSError
		if _, err := a.DialContext(t.Context(), "tcp", "nobody:443"); !errors.As(err, &unknown) {
			t.Errorf("a name nobody has: %v", err)
		}
		if _, err := a.DialContext(t.Context(), "tcp6", "server:443"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("IPv6 without an address: %v", err)
		}
		start = time.Now()
		if _, err := a.DialContext(t.Context(), "tcp", "203.0.113.2:443"); !errors.Is(err, syscall.ETIMEDOUT) || time.Since(start) < streamGiveUp {
			t.Errorf("into a NAT: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		n.CutOneWay(server, a) // the stream is accepted, but nobody hears of it
		l := server.ListenTCP(443)
		if _, err := a.DialContext(ctx, "tcp", "server:443"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("beyond the deadline: %v", err)
		}
		n.Uncut(server, a)
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("data on a stream that was given up")
		}
	})
}

func TestStreamCut(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		home := n.NAT(Linux, addr("203.0.113.2"))
		a, server := home.Host("a"), n.Host("server")
		c, s := open(t, a, server)
		buf := make([]byte, 100)
		say := func(text string) {
			t.Helper()
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		hear := func(text string) {
			t.Helper()
			if k, err := io.ReadFull(s, buf[:len(text)]); err != nil || string(buf[:k]) != text {
				t.Fatalf("read %q, %v", buf[:k], err)
			}
		}
		n.CutUDP(home, nil)
		home.Flush()
		say("through")
		hear("through")
		n.Cut(a, server)
		start := time.Now()
		say("late")
		pass(5 * time.Second)
		n.Uncut(a, server)
		hear("late")
		if took := time.Since(start); took < 5*time.Second || took > 8*time.Second {
			t.Errorf("arrived %v after being written, cut for 5 s", took)
		}
		n.SetLoss(server, 0.3)
		for range 50 {
			say("lossy")
			hear("lossy")
		}
		n.SetLoss(server, 0)
		n.Cut(a, nil)
		say("lost")
		pass(2 * time.Minute)
		if _, err := c.Write(buf); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("Write after two minutes of silence: %v", err)
		}
		n.Uncut(a, nil)
	})
}

func TestStreamChangeIP(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		home := n.NAT(Linux, addr("203.0.113.2"))
		c, s := open(t, home.Host("a"), n.Host("server"))
		home.ChangeIP(addr("203.0.113.3"))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v", err)
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("the server reads %v", err)
		}
	})
}

// TestWebSocket runs what agents use: a WebSocket in TLS through a NAT, served by net/http.
func TestWebSocket(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		server := n.Host("server")
		web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer c.CloseNow()
			for {
				kind, b, err := c.Read(r.Context())
				if err != nil || c.Write(r.Context(), kind, b) != nil {
					return
				}
			}
		})}
		served := make(chan error, 1)
		l := tls.NewListener(server.ListenTCP(443), &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
		go func() { served <- web.Serve(l) }()

		a := n.NAT(Port, addr("203.0.113.2")).Host("a")
		transport := &http.Transport{DialContext: a.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		c, _, err := websocket.Dial(t.Context(), "wss://server/x", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			want := bytes.Repeat([]byte{byte(i)}, 1+i*1000)
			if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message %d comes back as %d bytes, %v", i, len(got), err)
			}
		}
		if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
		if err := web.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
}

func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
