package overlay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

func TestRelayHeader(t *testing.T) {
	if relayHeader != relay.FrameOverhead {
		t.Errorf("relayHeader is %d, a relay frame adds %d", relayHeader, relay.FrameOverhead)
	}
}

// A full frame fits its budget, without padding.
func TestRoom(t *testing.T) {
	for budget := frameBase; budget <= 1500; budget++ {
		for _, p := range []natt.Path{{Remote: addr4}, {Remote: addr6}, {Remote: addr4, Channel: 1}, {Remote: addr6, Channel: 1}} {
			n := room(p, budget)
			outer := n + crypto.Overhead + outerSize(p)
			if p.Relayed() {
				outer += relayHeader
			}
			if n%16 != 0 || outer > budget || outer <= budget-16 {
				t.Errorf("room(%v, %d) = %d: outer packet of %d", p, budget, n, outer)
			}
		}
	}
	if got := room(natt.Path{Remote: addr6}, 1492); got < DefaultMTU {
		t.Errorf("a packet of the TUN's MTU does not fit 1492 over IPv6: room %d", got)
	}
}

// flowOf names the flow of an inner packet: what must keep its order.
func flowOf(p []byte) string {
	n := 44
	if p[6] == 44 || p[6] == protoICMPv6 {
		n = 40
	}
	return fmt.Sprintf("%x %x", p[6], p[8:n])
}

// byFlow sorts packets into flows.
func byFlow(packets [][]byte) map[string][][]byte {
	m := make(map[string][][]byte)
	for _, p := range packets {
		m[flowOf(p)] = append(m[flowOf(p)], p)
	}
	return m
}

func sameFlows(t *testing.T, got, want [][]byte) {
	t.Helper()
	g, w := byFlow(got), byFlow(want)
	for f, packets := range w {
		if len(g[f]) != len(packets) {
			t.Errorf("flow %s: %d packets, want %d", f, len(g[f]), len(packets))
			continue
		}
		for i := range packets {
			if !bytes.Equal(g[f][i], packets[i]) {
				t.Fatalf("flow %s: packet %d of %d is\n%x, want\n%x", f, i, len(packets), g[f][i], packets[i])
			}
		}
	}
	for f := range g {
		if w[f] == nil {
			t.Errorf("flow %s came from nowhere", f)
		}
	}
}

// randomPacket draws what a TUN may give to one of the peers, and what it must
// come out as on the other side: superpackets cut to the room, checksums
// complete.
func randomPacket(r *rand.Rand, from, to uint32, room int) (tun.Packet, [][]byte) {
	size := r.IntN(1300)
	if r.IntN(2) == 0 {
		size = r.IntN(100)
	}
	fill := func(s tuntest.Segment) tuntest.Segment {
		for i := range s.Payload {
			s.Payload[i] = byte(r.Uint32())
		}
		s.Class, s.Label = uint8(r.IntN(4)), r.Uint32()&1
		return s
	}
	port := uint16(r.IntN(3)) + 1
	var p tun.Packet
	switch r.IntN(9) {
	case 0, 1: // TCP superpacket
		s := fill(segment(from, port, to, 80, tuntest.ACK, 1+r.IntN(8000)))
		s.Seq, s.Options = r.Uint32(), bytes.Repeat([]byte{1}, 4*r.IntN(4))
		p = s.Partial(1 + r.IntN(1348))
	case 2: // TCP packet, perhaps longer than the room
		s := fill(segment(from, port, to, 80, tuntest.ACK|tuntest.PSH, size))
		p = tun.Packet{Data: s.Complete()}
	case 3:
		p = fill(segment(from, port, to, 80, tuntest.ACK, size)).Partial(0)
	case 4: // UDP superpacket
		p = fill(datagram(from, port, to, 53, 1+r.IntN(4000))).Partial(1 + r.IntN(1360))
	case 5:
		p = fill(datagram(from, port, to, 53, size)).Partial(0)
	case 6:
		p = tun.Packet{Data: fill(datagram(from, port, to, 53, size)).Complete()}
	case 7:
		p = tun.Packet{Data: icmp(from, to, 128, 0, fill(datagram(from, 1, to, 1, size)).Payload)}
	default:
		p = tun.Packet{Data: fragment(from, to, trust.ProtoUDP, uint32(port), 0, true, datagram(from, port, to, 53, size&^7).Complete()[40:])}
	}
	ref := tun.Packet{Data: bytes.Clone(p.Data), SegmentSize: p.SegmentSize, Partial: p.Partial}
	if hl := 40 + int(p.Data[52%len(p.Data)]>>4)*4; p.Data[6] == trust.ProtoTCP && (ref.SegmentSize > 0 || len(p.Data) > room) {
		if ref.SegmentSize == 0 {
			ref.SegmentSize = room - hl
		}
		ref.SegmentSize = min(ref.SegmentSize, room-hl)
	}
	return p, tuntest.Normalize(ref)
}

// Whatever is sent to several peers, over paths that change under way, comes
// out of the other side's device, byte by byte and in the order of its flow.
// Every message is a run as a socket takes it, and no datagram exceeds the
// budget of its path.
func TestSenderProperty(t *testing.T) {
	rounds := 80
	if raceEnabled || testing.Short() {
		rounds = 8
	}
	for seed := range uint64(rounds) {
		offload := allOffloads
		if seed%3 == 0 {
			offload = tun.Offload{}
		}
		r := rand.New(rand.NewPCG(1, seed))
		w := newTraffic(t, r, offload)
		for range 1 + r.IntN(6) {
			w.burst(1 + r.IntN(200))
		}
		w.check()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// traffic is one sender with several receivers.
type traffic struct {
	t     *testing.T
	r     *rand.Rand
	a     *rig
	to    []*rig
	entry []*sessionEntry
	at    map[netip.AddrPort]int // whose address it is
	most  map[netip.AddrPort]int // largest budget that its paths had
	want  [][][]byte
}

func newTraffic(t *testing.T, r *rand.Rand, o tun.Offload) *traffic {
	w := &traffic{t: t, r: r, a: newRig(1000, &sinkDevice{}), at: map[netip.AddrPort]int{}, most: map[netip.AddrPort]int{}}
	for i := range 3 {
		b := newRig(uint32(2000+i), tuntest.New(tuntest.Options{Offload: o, Depth: 1 << 14}))
		ab, _ := join(w.a, b)
		w.to, w.entry, w.want = append(w.to, b), append(w.entry, ab), append(w.want, nil)
		w.move(i)
	}
	return w
}

// move gives a peer another path, or two.
func (w *traffic) move(i int) *transmit {
	path := func() natt.Path {
		host := byte(1 + i*16 + w.r.IntN(4))
		p := natt.Path{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), 4242)}
		if w.r.IntN(2) == 0 {
			p.Remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: host}), 4242)
		}
		if w.r.IntN(3) == 0 {
			p.Channel = uint64(host)
		}
		w.at[p.Remote] = i
		return p
	}
	p, also := path(), natt.Path{}
	if w.r.IntN(3) == 0 {
		if also = path(); also == p {
			also = natt.Path{}
		}
	}
	budget := frameBase + w.r.IntN(301)
	if w.r.IntN(3) == 0 && !p.Relayed() && also == (natt.Path{}) {
		budget = 1501 + w.r.IntN(natt.MaxBudget-1500)
	}
	w.most[p.Remote], w.most[also.Remote] = max(w.most[p.Remote], budget), max(w.most[also.Remote], budget)
	return w.a.use(w.entry[i], p, also, budget)
}

// burst sends packets that wait together and delivers the result.
func (w *traffic) burst(n int) {
	snap := w.a.snapshot.Load()

	for range n {
		i := w.r.IntN(len(w.to))
		tx := w.entry[i].peer.tx.Load()
		if w.r.IntN(20) == 0 {
			tx = w.move(i)
		}

		if w.r.IntN(30) == 0 {
			w.a.out.send.item(w.entry[i].peer, tx, appendItem(nil, itemKeepalive, nil), 0)
			continue
		}
		p, want := randomPacket(w.r, w.a.node, w.to[i].node, tx.room)
		w.want[i] = append(w.want[i], want...)
		w.a.out.packet(snap, &p, w.a.clock.boot)
		if w.r.IntN(50) == 0 {
			w.a.out.send.flush()
		}
	}
	w.a.out.send.flush()
	for _, m := range w.a.socket.take() {
		w.checkRun(m)
		w.to[w.at[m.Addr]].receive(addr4, m)
	}
}

// checkRun asserts what a socket with UDP_SEGMENT asks of a run.
func (w *traffic) checkRun(m natt.Message) {
	w.t.Helper()
	size := m.Segment
	if size == 0 {
		size = len(m.Buf)
	}
	frames := (len(m.Buf) + size - 1) / size
	if len(m.Buf) == 0 || len(m.Buf) > runBytes || frames > runFrames || m.Segment == 0 && frames != 1 || m.Segment != 0 && frames < 2 {
		w.t.Errorf("run of %d bytes in frames of %d", len(m.Buf), m.Segment)
	}
	if outer := size + outerSize(natt.Path{Remote: m.Addr}); outer > w.most[m.Addr] {
		w.t.Errorf("outer packet of %d bytes", outer)
	}
}

func (w *traffic) check() {
	w.t.Helper()
	if n := w.a.allDropped(); n != 0 {
		w.t.Errorf("sender dropped: %v", w.a.drops.counts())
	}
	for i, b := range w.to {
		for reason, n := range b.drops.counts() {
			if reason != "in_replay" && reason != "in_loop" {
				w.t.Errorf("receiver %d dropped %d: %s", i, n, reason)
			}
		}
		sameFlows(w.t, b.drained(w.t), w.want[i])
	}
}

// one is a sender with one receiver on a fixed path.
func one(t testing.TB, path, also natt.Path, budget int) (a, b *rig, tx *transmit) {
	t.Helper()
	a, b = newRig(1, &sinkDevice{}), newRig(2, tuntest.New(tuntest.Options{Offload: allOffloads, Depth: 1 << 12}))
	ab, _ := join(a, b)
	return a, b, a.use(ab, path, also, budget)
}

// Small packets that wait together share a frame; nothing waits for more.
func TestBundling(t *testing.T) {
	a, b, tx := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	var packets []tun.Packet
	var want [][]byte
	for i := range 10 {
		s := datagram(1, uint16(i+1), 2, 7, 40+i)
		packets = append(packets, tun.Packet{Data: s.Complete()})
		want = append(want, s.Complete())
	}
	a.send(packets...)
	sent := a.socket.take()
	if len(sent) != 1 || sent[0].Segment != 0 || len(sent[0].Buf)%16 != 0 {
		t.Fatalf("ten small packets left in %d messages: %v", len(sent), sent)
	}
	b.receive(addr4, sent...)
	sameFlows(t, b.drained(t), want)

	// A bundle is full when no packet fits it any more, and PARTIAL and complete
	// packets do not mix.
	a.send(tun.Packet{Data: datagram(1, 1, 2, 7, 600).Complete()}, tun.Packet{Data: datagram(1, 2, 2, 7, 600).Complete()},
		datagram(1, 3, 2, 7, 20).Partial(0), tun.Packet{Data: datagram(1, 4, 2, 7, 20).Complete()})
	if n := frames(a.socket.take()); n != 4 {
		t.Errorf("%d frames, want 4", n)
	}
	// Between the segments of a superpacket and packets of the same peer the
	// order is that of arrival.
	a.send(tun.Packet{Data: datagram(1, 1, 2, 7, 20).Complete()}, segment(1, 1, 2, 80, tuntest.ACK, 5000).Partial(1000),
		tun.Packet{Data: datagram(1, 1, 2, 7, 21).Complete()})
	sent = a.socket.take()
	if len(sent) != 2 || sent[1].Segment != 1060+crypto.Overhead || len(sent[1].Buf) != 5*sent[1].Segment+80+crypto.Overhead {
		t.Errorf("superpacket between small ones: %d messages", len(sent))
	}
	b.receive(addr4, sent...)
	if tx.session.Sent() != 1+4+7 {
		t.Errorf("%d frames sealed", tx.session.Sent())
	}
}

func frames(m []natt.Message) (n int) {
	for _, m := range m {
		if n++; m.Segment > 0 {
			n += (len(m.Buf) - 1) / m.Segment
		}
	}
	return n
}

// A run is bounded by frames and by bytes.
func TestRunLimits(t *testing.T) {
	a, b, _ := one(t, natt.Path{Remote: addr6, Channel: 9}, natt.Path{}, 1500)
	for _, size := range []int{10, 100, 1000, 1300} {
		s := segment(1, 1, 2, 80, tuntest.ACK, 60000)
		a.send(s.Partial(size))
		sent := a.socket.take()
		total := 0
		for _, m := range sent {
			n := frames([]natt.Message{m})
			total += n
			if n > runFrames || len(m.Buf) > runBytes {
				t.Errorf("segments of %d: run of %d frames, %d bytes", size, n, len(m.Buf))
			}
			for at := 0; at < len(m.Buf); at += max(m.Segment, 1) {
				if channel, _, ok := relay.ParseFrame(m.Buf[at:]); !ok || channel != 9 {
					t.Fatalf("segments of %d: frame at %d has no relay header", size, at)
				}
				if m.Segment == 0 {
					break
				}
			}
		}
		if want := (60000 + size - 1) / size; total != want {
			t.Errorf("segments of %d: %d frames, want %d", size, total, want)
		}
		b.receive(addr6, sent...)
		sameFlows(t, b.drained(t), tuntest.Normalize(s.Partial(size)))
	}
	if n := b.allDropped() - b.dropped(dropInLoop); n != 0 {
		t.Errorf("receiver dropped %v", b.drops.counts())
	}
}

// The arena is written out before it overflows, wherever its end falls, and is
// never left for a larger one.
func TestArenaBoundary(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1500)
	snap := a.snapshot.Load()
	rounds := 40
	if raceEnabled {
		rounds = 8
	}
	for range rounds {
		var want [][]byte
		for full := 0; full < arenaSize+arenaSize/2; {
			s := segment(1, 1, 2, 80, tuntest.ACK, 10000+r.IntN(20000))
			s.Seq = uint32(full)
			p := s.Partial(1200 + r.IntN(148))
			if r.IntN(3) == 0 {
				s = datagram(1, 1, 2, 7, r.IntN(1300))
				p = s.Partial(0)
			}
			full += p.Len()
			want = append(want, tuntest.Normalize(tun.Packet{Data: bytes.Clone(p.Data), SegmentSize: p.SegmentSize, Partial: true})...)
			a.out.packet(snap, &p, a.clock.boot)
			if cap(a.out.send.arena) != arenaSize {
				t.Fatalf("arena of %d bytes", cap(a.out.send.arena))
			}
		}
		a.out.send.flush()
		for _, m := range a.socket.take() {
			b.receive(addr4, m)
		}
		sameFlows(t, b.drained(t), want)
		if t.Failed() {
			break
		}
	}
}

// A packet that does not fit goes as two halves; one that does not fit two is
// dropped and counted.
func TestHalves(t *testing.T) {
	a, b, tx := one(t, natt.Path{Remote: addr6, Channel: 1}, natt.Path{}, 1200)
	var want [][]byte
	for size := tx.room - 48 - 3; size <= DefaultMTU-48; size++ {
		s := datagram(1, 9, 2, 7, size)
		s.Payload[0], s.Payload[size-1] = byte(size), byte(size>>8)
		a.send(s.Partial(0))
		want = append(want, s.Complete())
	}
	sent := a.socket.take()
	for _, m := range sent {
		size := m.Segment
		if size == 0 {
			size = len(m.Buf)
		}
		if size+outerIPv6 > 1200 {
			t.Errorf("outer packet of %d", size+outerIPv6)
		}
	}
	b.receive(addr6, sent...)
	sameFlows(t, b.drained(t), want)
	if n := len(b.snapshot.Load().sessions.get(tx.session.Remote()).frags.halves); n != 0 {
		t.Errorf("%d halves are left", n)
	}
	a.send(tun.Packet{Data: raw(1, 2, protoICMPv6, make([]byte, 2*tx.room))})
	a.send(datagram(1, 9, 2, 7, 2*tx.room).Partial(0))
	if n := a.dropped(dropOutTooBig); n != 2 {
		t.Errorf("%d too big, want 2: %v", n, a.drops.counts())
	}
}

// During an upgrade each frame travels on both paths and is taken once.
func TestDouble(t *testing.T) {
	relayed := natt.Path{Remote: addr6, Channel: 77}
	for _, paths := range [][2]natt.Path{
		{{Remote: addr4}, relayed}, {relayed, {Remote: addr4}}, {relayed, {Remote: addr6, Channel: 78}}, {{Remote: addr4}, {Remote: addr6}},
	} {
		a, b, _ := one(t, paths[0], paths[1], 1300)
		s := segment(1, 1, 2, 80, tuntest.ACK, 9000)
		a.send(s.Partial(900), tun.Packet{Data: datagram(1, 9, 2, 7, 10).Complete()})
		sent := a.socket.take()
		if len(sent) != 22 {
			t.Errorf("%v: %d messages, want 22", paths, len(sent))
		}
		var first, second []natt.Message
		for i, m := range sent {
			if i%2 == 0 {
				first = append(first, m)
			} else {
				second = append(second, m)
			}
			if want := paths[i%2].Remote; m.Addr != want {
				t.Errorf("message %d to %v, want %v", i, m.Addr, want)
			}
		}
		want := append(tuntest.Normalize(s.Partial(900)), datagram(1, 9, 2, 7, 10).Complete())
		b.receive(addr4, second...)
		sameFlows(t, b.drained(t), want)
		b.receive(addr4, first...)
		if n := b.dropped(dropInReplay); n != 11 {
			t.Errorf("%v: %d replays, want 11: %v", paths, n, b.drops.counts())
		}
		if len(b.drained(t)) != 0 {
			t.Error("the second copies came through")
		}
	}
}

// Control items fill the size that a challenge asks for, and no more.
func TestItemPadding(t *testing.T) {
	for _, path := range []natt.Path{{Remote: addr4}, {Remote: addr6}, {Remote: addr4, Channel: 3}} {
		for _, size := range []int{0, 1200, 1372, 1452, 1500} {
			a, b, tx := one(t, path, natt.Path{}, 1200)
			token := natt.Token{1, 2, 3}
			a.out.send.item(a.peer(2), tx, appendChallenge(nil, itemChallenge, token, size), size)
			a.out.send.flush()
			sent := a.socket.take()
			if outer := len(sent[0].Buf) + outerSize(path); size > 0 && (outer > size || outer <= size-16) || size == 0 && outer > 130 {
				t.Errorf("%v, size %d: outer packet of %d", path, size, outer)
			}
			b.receive(addr4, sent...)
			<-b.events // confirm
			e := <-b.events
			if got, n, ok := parseChallenge(e.body); !ok || e.item != itemChallenge || got != token || n != size {
				t.Errorf("%v, size %d: got %v", path, size, e)
			}
		}
	}
}

// What the socket refuses is counted and told with the path that it was for,
// the second one included.
func TestSendErrors(t *testing.T) {
	relayed := natt.Path{Remote: addr6, Channel: 77}
	a, _, _ := one(t, natt.Path{Remote: addr4}, relayed, 1300)
	a.socket.err = &natt.WriteError{Failed: []int{1}, Err: syscall.EMSGSIZE}
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 1000).Complete()})
	<-a.events // awake
	e := <-a.events
	size := len(a.socket.take()[1].Buf)
	if e.kind != evTooBig || e.path != relayed || len(e.body) != size || e.peer != a.peer(2) || a.dropped(dropOutSend) != 1 {
		t.Errorf("got %+v, drops %v", e, a.drops.counts())
	}
	a.socket.err = &natt.WriteError{Failed: []int{0}, Err: syscall.ENETUNREACH}
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 1000).Complete()})
	if len(a.events) != 0 || a.dropped(dropOutSend) != 2 {
		t.Errorf("%d events, drops %v", len(a.events), a.drops.counts())
	}
	// A session that can seal no more drops, and the next one goes on.
	a.socket.err = nil
	a.socket.take()
	a.peer(2).tx.Load().session.Wipe()
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 1000).Complete()}, segment(1, 1, 2, 80, tuntest.ACK, 3000).Partial(1000))
	if n := a.dropped(dropOutSession); n != 4 || len(a.socket.take()) != 0 {
		t.Errorf("wiped session: %v", a.drops.counts())
	}
}

// Paths that start at another socket leave there; at a closed one nothing does.
func TestSockets(t *testing.T) {
	a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{Remote: addr6, Socket: 1}, 1300)
	second := &keptSocket{}
	a.snapshot.Load().sockets = []natt.PacketConn{nil, second}
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 100).Complete()})
	if x, y := a.socket.take(), second.take(); len(x) != 1 || len(y) != 1 || x[0].Addr != addr4 || y[0].Addr != addr6 {
		t.Errorf("main socket %v, second %v", x, y)
	}
	a.snapshot.Load().sockets[1] = nil
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 100).Complete()})
	if b.receive(addr4, a.socket.take()...); len(b.drained(t)) != 1 || a.dropped(dropOutSend) != 1 {
		t.Errorf("closed second socket: %v", a.drops.counts())
	}
}
