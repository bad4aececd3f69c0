package overlay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/overlay/firewall/firewalltest"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// Two agents, for tests that do not care which.
const us, them = 1000, 2000

// A rig is the packet path of one agent without its control loop: a plane with
// a device, a socket that keeps what is sent, and a clock that stands still.
type rig struct {
	*plane
	node   uint32
	socket *keptSocket
	clock  *stillClock
	out    *outbound
	in     *inbound
	spare  []byte // for again
}

func newRig(node uint32, device tun.Device) *rig {
	own := ipam.Addr{Node: node}.ULA()
	r := &rig{node: node, socket: &keptSocket{}, clock: &stillClock{boot: time.Hour}}
	r.plane = &plane{
		own: own, prefix: overlayNetwork(), device: device, conn: r.socket, clock: r.clock, tags: newTagTable(),
		firewall: firewall.New(own.As16()), events: make(chan event, 1024), outside: make(chan event, 256),
	}
	r.snapshot.Store(&snapshot{peers: map[uint32]*peer{}, sessions: newSessionTable(256)})
	r.out, r.in = newOutbound(r.plane), newInbound(r.plane, r.socket, 0)
	return r
}

// know makes a peer of another agent, that may do everything.
func (r *rig) know(node uint32) *peer {
	a := ipam.Addr{Node: node}.ULA()
	p := &peer{Peer: firewall.Peer{Node: node, ULA: a.As16()}, addr: a}
	p.policy.Store(&firewall.Policy{Version: 1, In: trust.AllPorts, Out: trust.AllPorts})
	r.snapshot.Load().peers[node] = p
	return p
}

// join gives two agents a session with each other. Neither sends before its
// transmit is set.
func join(a, b *rig) (ab, ba *sessionEntry) {
	var k, l crypto.Keys
	binary.BigEndian.PutUint64(k.Send[:], uint64(a.node)<<32|uint64(b.node))
	binary.BigEndian.PutUint64(k.Recv[:], uint64(b.node)<<32|uint64(a.node))
	l.Send, l.Recv = k.Recv, k.Send
	// Indices whose low bits are free in both tables.
	free := func(r *rig) uint32 {
		for i := uint32(0xabcd0001); ; i++ {
			if r.snapshot.Load().sessions.free(i) {
				return i
			}
		}
	}
	ia, ib := free(a), free(b)
	ab = &sessionEntry{Session: crypto.NewSession(k, ia, ib), peer: a.peer(b.node)}
	ba = &sessionEntry{Session: crypto.NewSession(l, ib, ia), peer: b.peer(a.node)}
	a.snapshot.Load().sessions.put(ab)
	b.snapshot.Load().sessions.put(ba)
	return ab, ba
}

func (r *rig) peer(node uint32) *peer {
	if p := r.snapshot.Load().peers[node]; p != nil {
		return p
	}
	return r.know(node)
}

// use makes a transmit as the control loop would.
func (r *rig) use(e *sessionEntry, path, also natt.Path, budget int) *transmit {
	t := &transmit{session: e.Session, path: path, also: also, budget: budget, room: room(path, budget)}
	if t.double() {
		t.room = min(t.room, room(also, budget))
	}
	e.peer.tx.Store(t)
	return t
}

// send carries packets as if the device had read them together.
func (r *rig) send(packets ...tun.Packet) {
	snap := r.snapshot.Load()
	for i := range packets {
		r.out.packet(snap, &packets[i], r.clock.boot)
	}
	r.out.send.flush()
}

// receive hands over messages as a socket with UDP_GRO would.
func (r *rig) receive(from netip.AddrPort, sent ...natt.Message) {
	for _, m := range sent {
		b := slices.Clone(m.Buf)
		r.in.batch([]natt.Message{{Buf: b, N: len(b), Segment: m.Segment, Addr: from}})
	}
}

// drained returns the packets that were written to a channel device, each cut
// and complete.
func (r *rig) drained(t testing.TB) (packets [][]byte) {
	t.Helper()
	d := r.device.(*tuntest.Channel)
	for d.Waiting() > 0 {
		p, err := d.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, tuntest.Normalize(p)...)
	}
	return packets
}

// dropped is the number of packets refused for a reason.
func (r *rig) dropped(d dropReason) uint64 { return r.drops.n[d].Load() }

func (r *rig) allDropped() (n uint64) {
	for i := range r.drops.n {
		n += r.drops.n[i].Load()
	}
	return n
}

type stillClock struct{ boot time.Duration }

func (c *stillClock) Now() time.Time      { return time.Unix(1_800_000_000, 0).Add(c.boot) }
func (c *stillClock) Boot() time.Duration { return c.boot }

// A keptSocket keeps copies of what is written to it, unless it is told to
// discard, and fails as it is told.
type keptSocket struct {
	discard bool
	sent    []natt.Message
	err     error
	calls   int
}

func (*keptSocket) LocalAddr() netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Unspecified(), 1) }
func (*keptSocket) BatchSize() int            { return 8 }
func (*keptSocket) Offload() natt.Offload     { return natt.Offload{GSO: true, GRO: true, Batch: true} }
func (*keptSocket) Close() error              { return nil }

func (*keptSocket) ReadBatch([]natt.Message) (int, error) { return 0, net.ErrClosed }

func (s *keptSocket) WriteBatch(m []natt.Message) (int, error) {
	s.calls++
	if !s.discard {
		for _, m := range m {
			m.Buf = slices.Clone(m.Buf)
			s.sent = append(s.sent, m)
		}
	}
	return len(m), s.err
}

func (s *keptSocket) take() []natt.Message {
	m := s.sent
	s.sent = nil
	return m
}

// A sinkDevice takes everything and gives nothing.
type sinkDevice struct {
	offload tun.Offload
	packets int
	bytes   int
}

func (*sinkDevice) Name() string                   { return "sink" }
func (*sinkDevice) MTU() int                       { return DefaultMTU }
func (*sinkDevice) BatchSize() int                 { return 64 }
func (*sinkDevice) Close() error                   { return nil }
func (*sinkDevice) Read([]tun.Packet) (int, error) { return 0, net.ErrClosed }
func (d *sinkDevice) Offload() tun.Offload         { return d.offload }

func (d *sinkDevice) Write(p []tun.Packet) error {
	for i := range p {
		d.packets++
		d.bytes += p[i].Len()
	}
	return nil
}

var (
	allOffloads = tun.Offload{VNetHdr: true, TSO: true, USO: true}
	addr4       = netip.MustParseAddrPort("198.51.100.1:4242")
	addr6       = netip.MustParseAddrPort("[2001:db8::1]:4242")
)

// Inner packets.
var (
	ulaPort  = firewalltest.ULAPort
	raw      = firewalltest.Raw
	fragment = firewalltest.Fragment
	icmp     = firewalltest.ICMP
	segment  = firewalltest.Segment
	datagram = firewalltest.Datagram
	scope    = firewalltest.Scope
)

func name(r dropReason) string {
	if r == carried {
		return "carried"
	}
	return dropNames[r]
}
