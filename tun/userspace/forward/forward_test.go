package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	wgtun "golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// A namespace is a network without a way out but a Forwarder: another stack.
type namespace struct {
	*netstack.Net
	device wgtun.Device
	once   sync.Once
}

func (n *namespace) Read(b []byte) (int, error) {
	sizes := []int{0}
	_, err := n.device.Read([][]byte{b}, sizes, 0)
	return sizes[0], err
}

func (n *namespace) Write(b []byte) (int, error) { return n.device.Write([][]byte{b}, 0) }

func (n *namespace) Close() (err error) {
	n.once.Do(func() { err = n.device.Close() })
	return err
}

// A world says where addresses lead to in a test.
type world map[netip.AddrPort]string

func (w world) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	at, ok := w[to]
	if !ok {
		return nil, syscall.ECONNREFUSED
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

var (
	server  = netip.MustParseAddrPort("203.0.113.80:80")
	server6 = netip.MustParseAddrPort("[2001:db8::80]:80")
	names   = netip.MustParseAddr("192.0.0.1")
)

// open starts a Forwarder that ends with the test.
func open(t *testing.T, c Config) *namespace {
	t.Helper()
	const mtu = 9000
	device, network, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr("192.0.0.2"), netip.MustParseAddr("fd00::2")}, nil, mtu)
	if err != nil {
		t.Fatal(err)
	}
	n := &namespace{Net: network, device: device}
	c.Link, c.MTU = n, mtu
	f, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

// host listens on the loopback of the machine.
func host(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
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
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// A stream of some megabytes reaches the host whole, and what comes back after its
// end does too.
func TestStream(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	at := host(t, func(c net.Conn) {
		defer c.Close()
		h := sha256.New()
		n, err := io.Copy(h, c) // until the program has closed its half
		fmt.Fprintf(c, "%d %x %v", n, h.Sum(nil), err)
	})
	n := open(t, Config{Dial: world{server: at, server6: at}.dial})
	for _, to := range []netip.AddrPort{server, server6} {
		c, err := n.DialContextTCPAddrPort(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(rand.NewChaCha8([32]byte{}), size)); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%d %x <nil>", size, h.Sum(nil)); err != nil || string(got) != want {
			t.Errorf("%v: %s, want %s, %v", to, got, want, err)
		}
		c.Close()
	}
}

// What the host refuses the program is refused, and a reset arrives as one.
func TestRefused(t *testing.T) {
	t.Parallel()
	at := host(t, func(c net.Conn) {
		c.Read(make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	n := open(t, Config{Dial: world{server: at}.dial})
	if c, err := n.DialContextTCPAddrPort(t.Context(), server6); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v, %v", c, err)
	}
	c, err := n.DialContextTCPAddrPort(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	if _, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("after a reset: %v", err)
	}
}

func TestDatagrams(t *testing.T) {
	t.Parallel()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			k, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo(append([]byte("echo "), b[:k]...), from)
		}
	}()
	n := open(t, Config{Dial: world{server: p.LocalAddr().String()}.dial})
	for i := range 3 { // flows beside each other
		c, err := n.DialUDPAddrPort(netip.AddrPort{}, server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want := fmt.Sprintf("echo %d", i)
		b := make([]byte, 2000)
		for try := 0; ; try++ { // a datagram may be lost on a busy machine
			fmt.Fprint(c, i)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			k, err := c.Read(b)
			if err == nil && string(b[:k]) == want {
				break
			}
			if try == 5 {
				t.Fatalf("%q, %v", b[:k], err)
			}
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	n := open(t, Config{
		Dial: world{}.dial, NameServer: names,
		Names: func(_ context.Context, network string, query []byte) ([]byte, error) {
			if string(query) == "silence" {
				return nil, errors.New("no answer")
			}
			return append([]byte(network+" "), query...), nil
		},
	})
	c, err := n.DialContextTCPAddrPort(t.Context(), netip.AddrPortFrom(names, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, query := range []string{"one", strings.Repeat("x", 60000)} {
		if err := WriteMessage(c, []byte(query)); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadMessage(c); err != nil || string(got) != "tcp "+query {
			t.Errorf("%.20q, %v", got, err)
		}
	}
	u, err := n.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(names, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write([]byte("silence"))
	b := make([]byte, 100)
	for try := 0; ; try++ {
		u.Write([]byte("two"))
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		k, err := u.Read(b)
		if err == nil && string(b[:k]) == "udp two" {
			break
		}
		if try == 5 {
			t.Fatalf("%q, %v", b[:k], err)
		}
	}
	if err := WriteMessage(io.Discard, make([]byte, 65536)); err == nil {
		t.Error("a message without end is written")
	}
	if _, err := ReadMessage(bytes.NewReader([]byte{0, 5, 1})); err == nil {
		t.Error("a message that is cut is read")
	}
}

// What the stack must not see, since it would answer for others.
func TestCarried(t *testing.T) {
	t.Parallel()
	four := func(proto byte, to string) []byte {
		p := make([]byte, 40)
		p[0], p[9] = 0x45, proto
		copy(p[16:], netip.MustParseAddr(to).AsSlice())
		return p
	}
	six := func(next byte, to string) []byte {
		p := make([]byte, 60)
		p[0], p[6] = 0x60, next
		copy(p[24:], netip.MustParseAddr(to).AsSlice())
		return p
	}
	for _, c := range []struct {
		what string
		p    []byte
		want bool
	}{
		{"TCP", four(6, "203.0.113.1"), true},
		{"UDP", four(17, "169.254.169.254"), true},
		{"ping", four(1, "203.0.113.1"), false},
		{"broadcast", four(17, "255.255.255.255"), false},
		{"multicast", four(17, "224.0.0.251"), false},
		{"loopback", four(6, "127.0.0.1"), false},
		{"TCP6", six(6, "2001:db8::1"), true},
		{"fragment6", six(44, "2001:db8::1"), true},
		{"ping6", six(58, "2001:db8::1"), false},
		{"multicast6", six(17, "ff02::fb"), false},
		{"short", four(6, "203.0.113.1")[:19], false},
		{"short6", six(6, "2001:db8::1")[:39], false},
		{"nothing", nil, false},
		{"other", make([]byte, 60), false},
	} {
		if _, got := carried(c.p); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
