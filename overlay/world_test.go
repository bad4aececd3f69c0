package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A world is an Internet in memory with a rendezvous server and agents behind
// NATs, in virtual time when it is made inside a synctest bubble.
type world struct {
	t      testing.TB
	net    *natlab.Net
	server *natlab.Host
	key    crypto.DHPrivate
	store  rendezvous.Store
	dir    string
	stop   func()
	agents []*agent
	extra  []uint16     // ports besides serverPort
	second *natlab.Host // the server's other address, where it has one
}

// An agent is a node with what is around it.
type agent struct {
	*Node
	t      testing.TB
	host   *natlab.Host
	router *natlab.Router
	device *tuntest.Channel
	dir    string
	cfg    Config
	begin  func(*Node) // nil, or what is changed in a node before it runs
	stop   func()
}

const serverPort = 3478

// newWorld must be called inside a bubble; end with close.
func newWorld(t testing.TB) *world { return newWorldWith(t, false) }

// newWorldWith gives the server a second address and a second port, if wanted,
// so that agents find out how their NATs behave.
func newWorldWith(t testing.TB, second bool) *world {
	w := &world{t: t, net: natlab.New(natlab.Config{Seed: 1}), dir: t.TempDir()}
	var err error
	if w.key, err = crypto.GenerateDH(); err != nil {
		t.Fatal(err)
	}
	w.server = w.net.Host("server")
	if second {
		w.second = w.net.Host("server2")
	}
	w.store = rendezvous.NewMemoryStore()
	w.startServer()
	return w
}

func (w *world) startServer() {
	ready := make(chan struct{})
	var conns []natt.PacketConn
	var listeners []net.Listener
	for _, port := range append([]uint16{serverPort}, w.extra...) {
		listeners = append(listeners, w.server.ListenTCP(port))
		if w.second == nil {
			conns = append(conns, w.server.Listen(port))
		}
	}
	if w.second != nil {
		for _, h := range []*natlab.Host{w.server, w.second} {
			for _, port := range []uint16{serverPort, surveyPort} {
				conns = append(conns, boundConn{h.Listen(port), netip.AddrPortFrom(h.Addr(), port)})
			}
		}
	}
	s, err := rendezvous.New(rendezvous.Config{
		StateDir: w.dir, Key: w.key, Store: w.store, Public: w.server.Addr().String(),
		UDP: conns, TCP: listeners,
		Ready:  func(string) { close(ready) },
		Limits: rendezvous.Limits{ClaimBits: 8, MailBits: 8},
		Logger: testLogger(w.t, "server"),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			w.t.Errorf("server: %v", err)
		}
	}()
	<-ready
	w.stop = func() { cancel(); <-done }
}

// A boundConn is a socket that knows its address.
type boundConn struct {
	natt.PacketConn
	addr netip.AddrPort
}

func (c boundConn) LocalAddr() netip.AddrPort { return c.addr }

func (w *world) serverRef() crypto.Server {
	return crypto.Server{Host: w.server.Addr().String(), Port: serverPort, Key: w.key.Public()}
}

// agent starts a node named after a committed identity, behind a NAT of its own.
func (w *world) agent(name string, kind natlab.Kind) *agent {
	a := &agent{t: w.t, router: w.net.NAT(kind, netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + len(w.agents))})), dir: w.t.TempDir()}
	a.host = a.router.Host(name)
	a.cfg = Config{
		StateDir: a.dir, Name: name, Identity: identity(w.t, name), Servers: []crypto.Server{w.serverRef()},
		Underlay: labUnderlay{a.host}, Clock: labClock{time.Now()}, Logger: testLogger(w.t, name), Version: "test",
	}
	a.start()
	w.agents = append(w.agents, a)
	return a
}

func (a *agent) start() {
	a.device = tuntest.New(tuntest.Options{Depth: 4096})
	a.cfg.Device = a.device
	n, err := New(a.cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	a.Node = n
	if a.begin != nil {
		a.begin(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Run(ctx); err != nil {
			a.t.Errorf("%s: %v", a.cfg.Name, err)
		}
	}()
	a.stop = func() { cancel(); <-done }
}

func (w *world) close() {
	for _, a := range w.agents {
		a.stop()
	}
	w.stop()
	w.net.Close()
}

// befriend makes b trust a for ports, by the real exchange.
func (w *world) befriend(a, b *agent, ports, offer string) {
	w.t.Helper()
	a.registered()
	b.registered()
	ctx := w.ctx(30 * time.Second)
	if _, err := a.Request(ctx, RequestOptions{Contact: b.ID().Contact, Reason: "test", Ports: ports, Offer: offer}); err != nil {
		w.t.Fatalf("request: %+v", err)
	}
	eventually(w.t, "request arrives", func() bool { return len(b.Pending()) == 1 })
	if _, err := b.Approve(ctx, ApproveOptions{Peer: a.cfg.Name}); err != nil {
		w.t.Fatalf("approve: %+v", err)
	}
	if _, err := a.Wait(ctx, b.ID().Fingerprint); err != nil {
		w.t.Fatalf("wait: %+v", err)
	}
}

// befriended is a world in which bob lets alice reach port 7, and she him.
func befriended(t testing.TB, a, b natlab.Kind) (w *world, alice, bob *agent) {
	t.Helper()
	w = newWorld(t)
	alice, bob = w.agent("alice", a), w.agent("bob", b)
	w.befriend(alice, bob, "7", "7")
	return w, alice, bob
}

func (w *world) ctx(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	w.t.Cleanup(cancel)
	return ctx
}

func (a *agent) registered() {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" registers", func() bool {
		s := a.Status()
		return len(s.Servers) > 0 && s.Servers[0].State == "registered" && s.Servers[0].Claimed
	})
}

func (a *agent) peer(name string) Peer {
	for _, p := range a.Peers() {
		if p.Name == name {
			return p
		}
	}
	return Peer{}
}

func (a *agent) pathTo(name, path string) {
	a.t.Helper()
	eventually(a.t, a.cfg.Name+" reaches "+name+" by "+path, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = a.Ping(ctx, name, 0)
		return a.peer(name).Path == path
	})
}

// udp is an inner UDP packet with a complete checksum.
func udp(from, to netip.Addr, sport, dport uint16, payload []byte) []byte {
	p := make([]byte, 48+len(payload))
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], uint16(8+len(payload)))
	p[6], p[7] = trust.ProtoUDP, 64
	f, t := from.As16(), to.As16()
	copy(p[8:], f[:])
	copy(p[24:], t[:])
	binary.BigEndian.PutUint16(p[40:], sport)
	binary.BigEndian.PutUint16(p[42:], dport)
	binary.BigEndian.PutUint16(p[44:], uint16(8+len(payload)))
	copy(p[48:], payload)
	if err := tun.CompleteChecksum(p); err != nil {
		panic(err)
	}
	return p
}

// send injects a numbered UDP packet to port 7 of the other agent.
func (a *agent) send(to *agent, number uint32, size int) {
	a.t.Helper()
	payload := make([]byte, max(size, 4))
	binary.BigEndian.PutUint32(payload, number)
	p := udp(a.plane.own, to.plane.own, 4000, 7, payload)
	if err := a.device.Inject(tun.Packet{Data: p}); err != nil {
		a.t.Fatal(err)
	}
}

// receive returns the number of the next UDP packet written to the TUN.
func (a *agent) receive(d time.Duration) (uint32, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	for {
		p, err := a.device.Receive(ctx)
		if err != nil {
			return 0, err
		}
		if len(p.Data) >= 52 && p.Data[6] == trust.ProtoUDP {
			return binary.BigEndian.Uint32(p.Data[48:]), nil
		}
	}
}

// eventually waits in virtual time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		<-tick.C
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func identity(t testing.TB, name string) ipam.Identity {
	b, err := os.ReadFile(filepath.Join("..", "ipam", "testdata", name+".identity"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := ipam.ParseIdentity(b)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

type labUnderlay struct{ host *natlab.Host }

func (l labUnderlay) ListenUDP(port uint16) (natt.PacketConn, error) { return l.host.Listen(port), nil }
func (l labUnderlay) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return l.host.DialContext(ctx, network, address)
}
func (l labUnderlay) LookupNetIP(context.Context, string) ([]netip.Addr, error) {
	return nil, fmt.Errorf("no names in the lab")
}
func (l labUnderlay) Interfaces() ([]netip.Prefix, error) { return l.host.Interfaces(), nil }
func (l labUnderlay) LinkMTU() (int, error)               { return l.host.MTU(), nil }
func (l labUnderlay) MapPort(context.Context, uint16, func([]netip.AddrPort)) error {
	return nil
}
func (l labUnderlay) Changes(context.Context) <-chan struct{} { return nil }

type labClock struct{ start time.Time }

func (labClock) Now() time.Time        { return time.Now() }
func (c labClock) Boot() time.Duration { return time.Since(c.start) + time.Hour }

// testLogger writes to the test's log while PILOT_TEST_LOG is set.
func testLogger(t testing.TB, name string) *slog.Logger {
	if os.Getenv("PILOT_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(&testWriter{t: t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", name)
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// natlabDelay is the one-way delay of every uplink to the core.
const natlabDelay = 10 * time.Millisecond

// A result is what became of a stream of numbered packets.
type result struct {
	lost, twice int
	gap         time.Duration // longest time without a packet
}

// stream sends n numbered packets, one every interval, and reads them.
func stream(from, to *agent, n int, every time.Duration) result {
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := range n {
			from.send(to, uint32(i), 64)
			<-tick.C
		}
	}()
	seen := make([]int, n)
	var r result
	last := time.Now()
	for end := last.Add(time.Duration(n)*every + 10*time.Second); time.Now().Before(end); {
		i, err := to.receive(2 * time.Second)
		if err != nil {
			if time.Until(end) < 8*time.Second {
				break
			}
			continue
		}
		r.gap = max(r.gap, time.Since(last))
		last = time.Now()
		if seen[i]++; i == uint32(n-1) {
			break
		}
	}
	for _, k := range seen {
		if k == 0 {
			r.lost++
		} else {
			r.twice += k - 1
		}
	}
	return r
}

// session is what a sends to b on now.
func (a *agent) session(b *agent) *crypto.Session {
	p := a.plane.snapshot.Load().peers[b.cfg.Identity.Node]
	if tx := p.tx.Load(); tx != nil {
		return tx.session
	}
	return nil
}

// welcomed is when a's home session was last confirmed.
func (a *agent) welcomed() (at time.Time) {
	_ = a.loop.call(context.Background(), func(instant) { at = a.loop.servers[0].registeredAt })
	return at
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }
