package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHostileSilence: somebody on bob's own LAN, where no NAT helps him, sends
// probes straight to his socket and hears nothing at all: while bob is idle, while
// a tunnel runs, and after his restart, when what was recorded before is sent
// again. All probes have arrived: his drop counters and the kernel's say so. Carol,
// who is trusted and on the prober's very machine, is answered throughout.
// 1,000,000 probes with PILOT_HOSTILE=1.
func TestHostileSilence(t *testing.T) {
	t.Parallel()
	probes, burst := 20_000, 10
	if os.Getenv("PILOT_HOSTILE") != "" {
		probes, burst = 1_000_000, 25
	}
	l := newLab(t, "none", "linux")
	s := l.server(t)
	bob, carol := l.agent(t, "b1", "bob"), l.agent(t, "b2", "carol")
	bob.up(t, s)
	carol.up(t, s)
	c := l.capture(t, "b1")
	trust(t, carol, bob, "8080")
	direct(t, carol, bob)

	port := bob.status(t).Socket.Port
	target := netip.AddrPortFrom(netip.MustParseAddr(l.address(t, "b1")), port)
	conn := l.dial(t, "b2", "udp", target.String()).(*net.UDPConn)
	x := &prober{
		conn: conn, from: netip.MustParseAddrPort(conn.LocalAddr().String()), target: target, carol: carol.status(t).Socket.Port,
		genuine: captured(t, c, target), burst: burst,
	}
	c.only(x.concerns)

	x.phase(t, "idle", bob, probes/2)
	l.website(t, "b1", "[::]:8080")
	ended := x.download(t, carol)
	x.phase(t, "while a tunnel runs", bob, probes/4)
	if n := ended(); n < mebibyte {
		t.Errorf("only %d bytes came through the tunnel meanwhile", n)
	}
	carol.pilot(t, "ping", "bob", "-c", "1")
	bob.pilot(t, "down")
	bob.up(t, s)
	if got := bob.status(t).Socket.Port; got != port {
		t.Fatalf("bob's port is %d now, was %d", got, port)
	}
	direct(t, carol, bob)
	x.phase(t, "after a restart", bob, probes/4)
	carol.pilot(t, "ping", "bob", "-c", "1")

	sent := c.matching(func(d datagram) bool { return d.src == x.from })
	if len(sent) != 0 {
		t.Errorf("the capture has kept %d probes", len(sent))
	}
	if lost := c.lost(t); x.arrived.Load() != int64(x.sent) || lost > 0 {
		t.Errorf("%d of %d probes arrived on bob's card; the capture lost %d packets", x.arrived.Load(), x.sent, lost)
	}
	for _, d := range c.matching(func(datagram) bool { return true }) {
		t.Errorf("bob answered with protocol %d, %v -> %v: %x", d.protocol, d.src, d.dst, d.payload)
	}
	if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 2000)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the prober heard %d bytes, %v", n, err)
	}
	if p := carol.peer(t, "bob"); p.Path != "direct" || p.Endpoint != target.String() {
		t.Errorf("the positive control went by %s, %s; want %s", p.Path, p.Endpoint, target)
	}
	t.Logf("%d probes, 0 bytes in answer", x.sent)
}

// A prober sends what no one trusts to bob's socket.
type prober struct {
	conn         *net.UDPConn
	from, target netip.AddrPort
	carol        uint16 // her port, on the prober's machine
	genuine      [][]byte
	burst        int // probes a millisecond
	sent         int
	arrived      atomic.Int64 // on bob's card
}

// concerns counts the probes on bob's card, and keeps what goes back to the
// prober's machine and not to carol: UDP, ICMP, anything.
func (x *prober) concerns(d datagram) bool {
	if d.src == x.from && d.dst == x.target {
		x.arrived.Add(1)
	}
	toCarol := d.protocol == unix.IPPROTO_UDP && d.dst.Port() == x.carol
	return d.src.Addr() == x.target.Addr() && d.dst.Addr() == x.from.Addr() && !toCarol
}

// phase sends n probes and waits until each is accounted for: bob's counters have
// it, or the kernel had no room for it.
func (x *prober) phase(t *testing.T, name string, bob *agent, n int) {
	t.Helper()
	before, full := refusedFrames(t, bob), bob.socketDrops(t)
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	begin := time.Now()
	for i := range n {
		if _, err := x.conn.Write(probe(x.sent, x.genuine)); err != nil {
			t.Fatalf("%s: probe %d: %v", name, i, err) // an ICMP error would be an answer too
		}
		if x.sent++; x.sent%x.burst == 0 { // so that bob's buffer holds them
			<-pace.C
		}
	}
	took := time.Since(begin)
	var counted, dropped uint64
	within(t, 30*time.Second, name+": the probes are accounted for", func() bool {
		counted, dropped = refusedFrames(t, bob)-before, bob.socketDrops(t)-full
		return counted+dropped >= uint64(n)
	})
	drops := bob.status(t).Drops
	t.Logf("%s: %d probes in %v; bob refused %d frames, his kernel had no room for %d; counters %v", name, n, took.Round(time.Millisecond), counted, dropped, drops)
	for _, stage := range []string{"in_unknown", "in_short", "in_init_tag", "in_init_mac", "in_init_seen", "in_resp_index", "in_index"} {
		if drops[stage] == 0 {
			t.Errorf("%s: no probe was refused for the reason %s", name, stage)
		}
	}
	if counted < uint64(n)/10 {
		t.Errorf("%s: only %d of %d probes came as far as bob", name, counted, n)
	}
}

// download fetches from bob without end, slowly, until the returned function is
// called, which says how many bytes came.
func (x *prober) download(t *testing.T, a *agent) (ended func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := a.command(ctx, "curl", "-sS", "-N", "--limit-rate", "4M", "http://bob.pilot.internal:8080/100000")
	var count byteCount
	c.Stdout = &count
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the download runs", func() bool { return count.Load() > 0 })
	return func() int64 {
		within(t, 30*time.Second, "a mebibyte came", func() bool { return count.Load() >= mebibyte })
		cancel()
		_ = c.Wait() // killed
		return count.Load()
	}
}

// A byteCount counts what is written to it.
type byteCount struct{ atomic.Int64 }

func (c *byteCount) Write(b []byte) (int, error) {
	c.Add(int64(len(b)))
	return len(b), nil
}

// socketDrops is the number of datagrams for which the kernel had no room in the
// agent's socket.
func (a *agent) socketDrops(t *testing.T) (n uint64) {
	t.Helper()
	port := fmt.Sprintf(":%04X", a.status(t).Socket.Port)
	for _, file := range []string{"udp", "udp6"} {
		text, err := os.ReadFile(filepath.Join("/proc", itoa(a.daemon()), "net", file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 13 || !strings.HasSuffix(f[1], port) {
				continue
			}
			k, err := strconv.ParseUint(f[12], 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			n += k
		}
	}
	return n
}

// refusedFrames is the number of datagrams that an agent refused.
func refusedFrames(t *testing.T, a *agent) uint64 {
	t.Helper()
	var n uint64
	for reason, count := range a.status(t).Drops {
		if reason[:3] == "in_" {
			n += count
		}
	}
	return n
}

// captured returns what bob was sent by those he trusts, and by his server, out
// of its relay frames: the best probes there are.
func captured(t *testing.T, c *capture, bob netip.AddrPort) [][]byte {
	t.Helper()
	const relayFrame, relayHeader, initiation = 7, 12, 4
	var list [][]byte
	inits := 0
	for _, d := range c.matching(func(d datagram) bool { return d.dst == bob && len(d.payload) > relayHeader }) {
		p := d.payload
		list = append(list, p)
		if p[0] == relayFrame {
			p = p[relayHeader:]
			list = append(list, p)
		}
		if p[0] == initiation {
			inits++
		}
	}
	if inits == 0 {
		t.Errorf("no INIT among %d captured frames", len(list))
	}
	return list
}

// A shape is how the datagrams of a protocol begin, and how long they are.
type shape struct {
	head   []byte
	length int
}

// shapes of our own protocol and of others that one would scan for.
func shapes() []shape {
	return []shape{
		{nil, 64},
		{[]byte{4, 1, 0, 0}, 104},  // INIT
		{[]byte{5, 1, 0, 0}, 100},  // RESP
		{[]byte{6, 0, 0, 0}, 1312}, // DATA
		{[]byte{7, 0, 0, 0}, 12},   // an empty frame of a relay
		{[]byte{7, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 1, 0, 0}, 116}, // INIT in one
		{[]byte{9, 0, 0, 0}, 148},                                     // a server's WELCOME
		{[]byte{11, 0, 0, 0}, 64},                                     // a server's OPENED
		{[]byte{12, 0, 0, 0}, 256},                                    // a server's RECORD
		{[]byte{13, 0, 0, 0}, 32},                                     // a server's COOKIE
		{[]byte{14, 0, 0, 0}, 16},                                     // a server's HINT
		{[]byte{1, 0, 0, 0}, 148},                                     // WireGuard's initiation
		{[]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, 20},              // STUN's binding request
		{[]byte{1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, 20},              // and response
		{[]byte{22, 0xfe, 0xfd, 0, 0}, 180},                           // DTLS
		{[]byte{0xc3, 0, 0, 0, 1, 8}, 1200},                           // QUIC
		{[]byte("GET / HTTP/1.1\r\n\r\n"), 64},
	}
}

// probe is the i-th: one of six is what bob was really sent, one is that with a
// wrong byte, the others begin like a protocol and go on with noise, half of them
// in the right length.
func probe(i int, genuine [][]byte) []byte {
	switch round := i / 6; i % 6 {
	case 0:
		return genuine[round%len(genuine)]
	case 1:
		b := bytes.Clone(genuine[round%len(genuine)])
		b[rand.IntN(len(b))] ^= 1
		return b
	default:
		s := shapes()[i%len(shapes())]
		b := make([]byte, s.length)
		if i%2 == 0 {
			b = make([]byte, rand.IntN(1473))
		}
		for j := range b {
			b[j] = byte(rand.Uint32())
		}
		copy(b, s.head)
		return b
	}
}
