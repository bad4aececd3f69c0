package e2e_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const probes = 10_000

// TestSilence: somebody on bob's own LAN, where no NAT helps him, sends probes
// straight to his socket and hears nothing at all. All have arrived: his drop
// counters say so. Carol, who is trusted and on the prober's very machine, is
// answered before and after.
func TestSilence(t *testing.T) {
	t.Parallel()
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
	prober := l.dial(t, "b2", "udp", target.String()).(*net.UDPConn)
	from := netip.MustParseAddrPort(prober.LocalAddr().String())
	genuine := captured(t, c, target)

	before := refusedFrames(t, bob)
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for i := range probes {
		if _, err := prober.Write(probe(i, genuine)); err != nil {
			t.Fatalf("probe %d: %v", i, err) // an ICMP error would be an answer too
		}
		if i%10 == 9 { // so that bob's buffer holds them
			<-pace.C
		}
	}
	var counted uint64
	within(t, 10*time.Second, "bob has counted the probes", func() bool {
		counted = refusedFrames(t, bob) - before
		return counted >= probes
	})
	drops := bob.status(t).Drops
	t.Logf("bob's counters: %v", drops)
	for _, stage := range []string{"in_unknown", "in_short", "in_init_tag", "in_init_mac", "in_init_seen", "in_resp_index", "in_index", "in_auth", "in_replay"} {
		if drops[stage] == 0 {
			t.Errorf("no probe was refused for the reason %s", stage)
		}
	}
	if counted != probes {
		t.Errorf("bob counted %d refused frames, %d were sent", counted, probes)
	}
	carol.pilot(t, "ping", "bob", "-c", "1")

	sent := c.matching(func(d datagram) bool { return d.src == from && d.dst == target })
	if lost := c.lost(t); len(sent) != probes || lost > 0 {
		t.Errorf("the capture has %d of %d probes and lost %d packets", len(sent), probes, lost)
	}
	carolPort := carol.status(t).Socket.Port
	for _, d := range c.matching(func(d datagram) bool {
		toCarol := d.protocol == unix.IPPROTO_UDP && d.dst.Port() == carolPort
		return d.src.Addr() == target.Addr() && d.dst.Addr() == from.Addr() && !toCarol
	}) {
		t.Errorf("bob answered with protocol %d, %d -> %d: %x", d.protocol, d.src.Port(), d.dst.Port(), d.payload)
	}
	if p := carol.peer(t, "bob"); p.Path != "direct" || p.Endpoint != target.String() {
		t.Errorf("the positive control went by %s, %s; want %s", p.Path, p.Endpoint, target)
	}
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
