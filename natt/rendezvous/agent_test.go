package rendezvous

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// testLimits keep stamps cheap and let one loopback network do everything.
func testLimits() Limits {
	return Limits{ClaimBits: 8, MailBits: 8, Handshakes: 1e6, HandshakeBurst: 1e6, Requests: 1e6, RequestBurst: 1e6, NetConnections: 1000}
}

// A running server, and how to end it.
type running struct {
	*Server
	addr crypto.Server
	stop func()
}

// start runs a server on loopback until the test ends or stop is called.
func start(t testing.TB, cfg Config) running {
	t.Helper()
	if len(cfg.Listen) == 0 {
		cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	if cfg.Limits == (Limits{}) {
		cfg.Limits = testLimits()
	}
	lines := make(chan string, 1)
	cfg.Ready = func(line string) { lines <- line }
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r := running{Server: s}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(r.stop)
	select {
	case line := <-lines:
		text, ok := strings.CutPrefix(line, "--server ")
		if r.addr, err = crypto.ParseServer(text); err != nil || !ok {
			t.Fatalf("ready line %q: %v", line, err)
		}
	case err := <-ended:
		ended <- nil
		t.Fatalf("Run: %v", err)
	}
	return r
}

// An agent is an identity with the UDP socket and home session of one.
type agent struct {
	t      testing.TB
	id     ipam.Identity
	reg    crypto.DHPrivate
	server crypto.Server
	claim  []byte
	card   []byte
	conn   *net.UDPConn
	home   *relay.Home
	events []relay.HomeEvent
}

type frame struct {
	channel uint64
	inner   string
}

func newAgent(t testing.TB, name string, server crypto.Server) *agent {
	t.Helper()
	text, err := os.ReadFile("../../ipam/testdata/" + name + ".identity")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, id: id, reg: reg, server: server}
	a.sign(1)
	a.conn = dialUDP(t)
	a.newHome(1)
	return a
}

func dialUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (a *agent) newHome(instance uint64) {
	a.home = relay.NewHome(relay.HomeConfig{Server: a.server.Key, Static: a.reg, Key: a.id.Key.Public(), Instance: instance})
}

// sign makes claim and card with a serial.
func (a *agent) sign(serial uint64) {
	a.t.Helper()
	seal, err := crypto.NewSealPrivate(a.id.Key.Seed())
	if err != nil {
		a.t.Fatal(err)
	}
	a.claim = ipam.Claim{Addr: a.id.Addr(), Key: a.id.Key.Public(), Counter: a.id.Counter,
		Registration: a.reg.Public(), Serial: serial}.Sign(a.id.Key)
	a.card, err = crypto.Card{Key: a.id.Key.Public(), Counter: a.id.Counter, Seal: seal.Public(),
		Registration: a.reg.Public(), Servers: []crypto.Server{a.server}, Serial: serial}.Sign(a.id.Key)
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) fingerprint() crypto.Fingerprint { return a.id.Key.Public().Fingerprint() }

func (a *agent) control() *relay.Control {
	a.t.Helper()
	return dial(a.t, relay.DialConfig{Server: a.server, Static: &a.reg, Key: a.id.Key.Public()})
}

func dial(t testing.TB, cfg relay.DialConfig) *relay.Control {
	t.Helper()
	c, err := relay.Dial(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// claimed makes the agent known to its server.
func (a *agent) claimed() *agent {
	a.t.Helper()
	c := a.control()
	defer c.Close()
	if err := c.Claim(context.Background(), a.claim, a.card); err != nil {
		a.t.Fatal(err)
	}
	return a
}

func (a *agent) udpAddr() netip.AddrPort { return a.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func serverAddr(s crypto.Server) netip.AddrPort { return netip.MustParseAddrPort(s.HostPort()) }

func (a *agent) send(b []byte) {
	a.t.Helper()
	if _, err := a.conn.WriteToUDPAddrPort(b, serverAddr(a.server)); err != nil {
		a.t.Fatal(err)
	}
}

// step does what the home session wants now, then waits for one datagram and
// handles it. A RELAY frame is returned.
func (a *agent) step(wait time.Duration) (f frame, ok bool) {
	a.t.Helper()
	for _, b := range a.home.Advance(time.Now()) {
		a.send(b)
	}
	deadline := time.Now().Add(wait)
	if next := a.home.Next(); !next.IsZero() && next.Before(deadline) {
		deadline = next
	}
	a.conn.SetReadDeadline(deadline)
	var b [2048]byte
	n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		a.events = append(a.events, a.home.Events()...)
		return frame{}, false
	}
	if channel, inner, ok := relay.ParseFrame(b[:n]); ok {
		return frame{channel, string(inner)}, true
	}
	events, _ := a.home.Receive(time.Now(), b[:n])
	a.events = append(a.events, events...)
	return frame{}, false
}

// until steps until an event of this kind has come, and forgets the events.
func (a *agent) until(kind relay.HomeEventKind) relay.HomeEvent {
	a.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); a.step(time.Second) {
		for _, e := range a.events {
			if e.Kind == kind {
				a.events = nil
				return e
			}
		}
	}
	a.t.Fatalf("no event %d, only %+v", kind, a.events)
	return relay.HomeEvent{}
}

// receive steps until a RELAY frame has come.
func (a *agent) receive() frame {
	a.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if f, ok := a.step(time.Second); ok {
			return f
		}
	}
	a.t.Fatal("no relay frame")
	return frame{}
}

// silent steps for d and fails if a RELAY frame comes.
func (a *agent) silent(d time.Duration) {
	a.t.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); {
		if f, ok := a.step(time.Until(deadline)); ok {
			a.t.Fatalf("frame %q on channel %x", f.inner, f.channel)
		}
	}
}

func (a *agent) frame(channel uint64, inner string) {
	a.t.Helper()
	b := make([]byte, relay.FrameOverhead, relay.FrameOverhead+len(inner))
	relay.PutFrameHeader(b, channel)
	a.send(append(b, inner...))
}
