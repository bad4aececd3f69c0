package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/ipam/dns"
)

// start serves on free ports of the loopback address until the test ends.
func start(t *testing.T, s *dns.Server) (udp, tcp string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return pc.LocalAddr().String(), l.Addr().String()
}

// resolver is Go's own, over one network only.
func resolver(network, address string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

// TestServe asks as programs do, over UDP and over TCP.
func TestServe(t *testing.T) {
	t.Parallel()
	udp, tcp := start(t, &dns.Server{Zone: newZone(bob)})
	for network, address := range map[string]string{"udp": udp, "tcp": tcp} {
		r := resolver(network, address)
		list, err := r.LookupNetIP(t.Context(), "ip", "Bob.pilot.internal.")
		if err != nil || len(list) != 1 || list[0] != bob.Addr.ULA() {
			t.Errorf("%s: bob is at %v, %v", network, list, err)
		}
		if names, err := r.LookupAddr(t.Context(), bob.Addr.ULA().String()); err != nil || !slices.Equal(names, []string{"bob.pilot.internal."}) {
			t.Errorf("%s: the address is of %v, %v", network, names, err)
		}
		if _, list, err := r.LookupSRV(t.Context(), "a2a", "tcp", "bob.pilot.internal."); err != nil || len(list) != 2 {
			t.Errorf("%s: services %v, %v", network, list, err)
		}
		if list, err := r.LookupTXT(t.Context(), "bob.pilot.internal."); err != nil || !strings.HasPrefix(list[0], "address=0:0000.a91c.33f0fingerprint=") {
			t.Errorf("%s: text %q, %v", network, list, err)
		}
		var e *net.DNSError
		if _, err := r.LookupNetIP(t.Context(), "ip", "mallory.pilot.internal."); !errors.As(err, &e) || !e.IsNotFound {
			t.Errorf("%s: mallory: %v", network, err)
		}
		if _, err := r.LookupNetIP(t.Context(), "ip4", "bob.pilot.internal."); !errors.As(err, &e) || !e.IsNotFound {
			t.Errorf("%s: bob by IPv4: %v", network, err)
		}
	}
}

// TestStream: several questions on one connection, and what is no question
// ends it.
func TestStream(t *testing.T) {
	t.Parallel()
	_, address := start(t, &dns.Server{Zone: newZone(bob)})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := question(t, "bob.pilot.internal.", dnsmessage.TypeAAAA)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	if _, err := conn.Write(slices.Concat(framed, framed, []byte{0, 3})); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	n := int(binary.BigEndian.Uint16(all))
	if len(all) != 2*(n+2) || text(parse(t, all[2:2+n])) != "Success fd50:494c:4f54::a91c:33f0" {
		t.Errorf("got %x", all)
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	// The upstream knows bob only; that it is the same code does not matter.
	up, _ := start(t, &dns.Server{Zone: newZone(bob)})
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // reads nothing
	if err != nil {
		t.Fatal(err)
	}
	dead.Close() // so that it refuses at once
	f, err := dns.NewForwarder([]netip.AddrPort{netip.MustParseAddrPort(dead.LocalAddr().String()), netip.MustParseAddrPort(up)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	udp, _ := start(t, &dns.Server{Zone: newZone(), Forward: f})
	ask := func(name string) string {
		conn, err := net.Dial("udp", udp)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(question(t, name, dnsmessage.TypeAAAA)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1500)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return text(parse(t, b[:n]))
	}
	if got := ask("example.com."); got != "Refused" { // the upstream's word
		t.Errorf("example.com: %q", got)
	}
	if got := ask("bob.pilot.internal."); got != "NameError soa pilot.internal." {
		t.Errorf("a name of ours was passed on: %q", got)
	}
}

// TestForwardLoop has two servers forward to each other: the question ends.
func TestForwardLoop(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var other atomic.Value
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		asked.Add(1)
		return new(net.Dialer).DialContext(ctx, network, other.Load().(string))
	}
	f, err := dns.NewForwarder([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}, dial)
	if err != nil {
		t.Fatal(err)
	}
	udp, _ := start(t, &dns.Server{Zone: newZone(), Forward: f})
	other.Store(udp)
	_, err = resolver("udp", udp).LookupNetIP(t.Context(), "ip6", "example.com.")
	if n := asked.Load(); err == nil || n > 16 {
		t.Errorf("%d questions, error %v", n, err)
	}
}

func TestForwarderRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"[fd50:494c:4f54::35]:53", "[fd50:494c:4f54::1:0]:53"} {
		if _, err := dns.NewForwarder([]netip.AddrPort{netip.MustParseAddrPort(s)}, nil); !errors.Is(err, dns.ErrLoop) {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"0.0.0.0:53", "[ff02::1]:53", "192.0.2.1:0"} {
		if _, err := dns.NewForwarder([]netip.AddrPort{netip.MustParseAddrPort(s)}, nil); err == nil {
			t.Errorf("%s is accepted", s)
		}
	}
	if _, err := dns.NewForwarder(nil, nil); err == nil {
		t.Error("none is accepted")
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := dns.NewForwarder([]netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Zone: newZone(), Forward: f}
	if err := s.Serve(t.Context(), pc, nil); !errors.Is(err, dns.ErrLoop) {
		t.Errorf("Serve: %v", err)
	}
}
