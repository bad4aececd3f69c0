package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A wire is two agents whose sockets are the kernel's: what one sends the other
// reads, in runs where the kernel makes runs.
type wire struct {
	t        *testing.T
	a, b     *rig
	tx       *transmit
	streams  []*talk
	datagram int // numbers fragmented datagrams
}

// A talk is one TCP connection as its sender sees it, so that consecutive
// segments may be merged.
type talk struct {
	port  uint16
	seq   uint32
	class uint8
	ack   uint32
}

func newWire(t *testing.T, host netip.Addr, c natt.ListenConfig, o tun.Offload) *wire {
	t.Helper()
	c.Addr = netip.AddrPortFrom(host, 0)
	rigOn := func(node uint32, device tun.Device) *rig {
		conn, err := natt.Listen(c)
		if err != nil {
			t.Skipf("no socket on %v: %v", host, err)
		}
		t.Cleanup(func() { conn.Close() })
		r := newRig(node, device)
		r.plane.conn = conn
		r.in = newInbound(r.plane, conn, 0)
		return r
	}
	w := &wire{t: t, a: rigOn(1, &sinkDevice{}), b: rigOn(2, tuntest.New(tuntest.Options{Offload: o, Depth: 1 << 12}))}
	ab, _ := join(w.a, w.b)
	w.tx = w.a.use(ab, natt.Path{Remote: w.b.conn.LocalAddr()}, natt.Path{}, 1500)
	done := make(chan error, 1)
	go func() { done <- w.b.in.run() }()
	t.Cleanup(func() {
		w.b.conn.Close()
		if err := <-done; err != nil {
			t.Errorf("the reader ended with %v", err)
		}
	})
	for i := range 6 {
		w.streams = append(w.streams, &talk{port: uint16(7000 + i), ack: 1})
	}
	return w
}

// talk draws the next packet of one of the connections.
func (w *wire) talk(r *rand.Rand) (tun.Packet, [][]byte) {
	k := w.streams[r.IntN(len(w.streams))]
	if r.IntN(16) == 0 {
		k.class = uint8(r.IntN(4)) // ECN, as a router marks it
	}
	if r.IntN(16) == 0 {
		k.ack++
	}
	flags := uint8(tuntest.ACK)
	switch r.IntN(24) {
	case 0:
		flags |= tuntest.PSH
	case 1:
		flags |= tuntest.CWR
	case 2:
		flags |= tuntest.ECE
	case 3:
		flags |= tuntest.FIN
	case 4:
		flags |= tuntest.URG
	case 5:
		flags = tuntest.RST
	}
	per := []int{1336, 1336, 1336, 536, 1, 1 + r.IntN(1336)}[r.IntN(6)]
	n := per
	switch r.IntN(4) {
	case 0:
		n = per * (1 + r.IntN(20))
	case 1:
		n = per*(1+r.IntN(20)) + r.IntN(per)
	case 2:
		n = r.IntN(per + 1)
	}
	s := segment(1, k.port, 2, 80, flags, n)
	s.Seq, s.Ack, s.Class, s.Options = k.seq, k.ack, k.class, []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	for i := range s.Payload {
		s.Payload[i] = byte(int(k.seq) + i*7)
	}
	k.seq += uint32(n)
	p := s.Partial(per)
	switch {
	case n > per:
	case r.IntN(3) == 0:
		p = tun.Packet{Data: s.Complete()}
		if r.IntN(4) == 0 {
			p.Data[len(p.Data)-1] ^= 0x55 // damaged before it came to us, as the end has to see
		}
	default:
		p = s.Partial(0)
	}
	ref := p
	ref.Data = bytes.Clone(p.Data)
	return p, tuntest.Normalize(ref)
}

// fragments are the parts of one datagram, as the kernel cuts them.
func (w *wire) fragments(r *rand.Rand) (parts []tun.Packet, want [][]byte) {
	w.datagram++
	body := datagram(1, 9, 2, 53, 1400+r.IntN(3000)).Complete()[40:]
	for at := 0; at < len(body); at += 1352 {
		end := min(at+1352, len(body))
		f := fragment(1, 2, trust.ProtoUDP, uint32(w.datagram), at, end < len(body), body[at:end])
		parts, want = append(parts, tun.Packet{Data: bytes.Clone(f)}), append(want, f)
	}
	return parts, want
}

// burst draws packets of every kind, and what must come out.
func (w *wire) burst(r *rand.Rand, n int) (packets []tun.Packet, want [][]byte) {
	for range n {
		var p []tun.Packet
		var out [][]byte
		switch r.IntN(8) {
		case 0, 1, 2, 3, 4:
			q, o := w.talk(r)
			p, out = []tun.Packet{q}, o
		case 5:
			p, out = w.fragments(r)
		default:
			q, o := randomPacket(r, 1, 2, w.tx.room)
			p, out = []tun.Packet{q}, o
		}
		packets, want = append(packets, p...), append(want, out...)
	}
	return packets, want
}

// collect reads as many packets from the device as should come.
func (w *wire) collect(n int) (got [][]byte) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	for len(got) < n {
		p, err := w.b.device.(*tuntest.Channel).Receive(ctx)
		if err != nil {
			w.t.Fatalf("%d of %d packets came: %v; drops out %v, in %v", len(got), n, err, w.a.drops.counts(), w.b.drops.counts())
		}
		got = append(got, tuntest.Normalize(p)...)
	}
	return got
}

// Every mix of traffic goes through the fast path over the kernel's sockets and
// comes out as the slow reference says, byte by byte and in the order of its
// flow: with all that the kernel offers, and without each of it.
func TestPathVariants(t *testing.T) {
	rounds := 60
	if raceEnabled || testing.Short() {
		rounds = 12
	}
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	none := tun.Offload{}
	mac := natt.ListenConfig{Portable: true}
	for name, v := range map[string]struct {
		host   netip.Addr
		socket natt.ListenConfig
		device tun.Offload
		budget int // 1500 if 0
	}{
		"all over IPv4":    {v4, natt.ListenConfig{}, allOffloads, 0},
		"all over IPv6":    {v6, natt.ListenConfig{DontFragment: true}, allOffloads, 0},
		"no UDP GSO":       {v4, natt.ListenConfig{NoGSO: true}, allOffloads, 0},
		"no UDP GRO":       {v4, natt.ListenConfig{NoGRO: true}, allOffloads, 0},
		"no batches":       {v6, natt.ListenConfig{NoBatch: true}, allOffloads, 0},
		"no USO":           {v4, natt.ListenConfig{}, tun.Offload{VNetHdr: true, TSO: true}, 0},
		"no TSO":           {v4, natt.ListenConfig{}, tun.Offload{VNetHdr: true}, 0},
		"no virtio header": {v4, natt.ListenConfig{}, none, 0},
		"nothing at all":   {v6, natt.ListenConfig{NoGSO: true, NoGRO: true, NoBatch: true}, none, 0},
		"as on macOS":      {v4, mac, none, 0},
		"macOS, IPv6":      {v6, mac, none, 0},
		"jumbo over IPv4":  {v4, natt.ListenConfig{DontFragment: true}, allOffloads, natt.MaxBudget},
		"jumbo over IPv6":  {v6, natt.ListenConfig{DontFragment: true}, allOffloads, 3900},
		"jumbo, no GSO":    {v4, natt.ListenConfig{NoGSO: true, NoBatch: true}, none, natt.MaxBudget},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, v.host, v.socket, v.device)
			if v.budget > 0 {
				w.tx.budget, w.tx.room = v.budget, room(w.tx.path, v.budget) // nobody has seen it yet
			}
			r := rand.New(rand.NewPCG(5, uint64(len(name))))
			superpackets := 0
			for round := range rounds {
				packets, want := w.burst(r, 1+r.IntN(24))
				for i := range packets {
					if packets[i].SegmentSize > 0 {
						superpackets++
					}
				}
				w.a.send(packets...)
				sameFlows(t, w.collect(len(want)), want)
				if t.Failed() {
					t.Fatalf("round %d", round)
				}
			}
			if n := w.b.allDropped() + w.a.allDropped(); n != 0 || superpackets == 0 {
				t.Errorf("%d dropped: out %v, in %v; %d superpackets", n, w.a.drops.counts(), w.b.drops.counts(), superpackets)
			}
			o := w.a.conn.Offload()
			if o.GSO && v.socket.NoGSO || o.GRO && v.socket.NoGRO || o.Batch && v.socket.NoBatch || v.socket.Portable && o != (natt.Offload{}) {
				t.Errorf("the socket does what it must not: %+v", o)
			}
		})
	}
	t.Run("userspace", func(t *testing.T) {
		t.Parallel()
		testPathUserspace(t, v4, int64(rounds)<<16)
	})
}

// What is read together is merged as the device allows: the flows of a batch do
// not break each other's superpackets.
func TestPathMerges(t *testing.T) {
	for name, c := range map[string]struct {
		offload tun.Offload
		most    int // writes to the device
	}{
		"TSO and USO": {allOffloads, 8},
		"TSO":         {tun.Offload{VNetHdr: true, TSO: true}, 4 + 4*8},
		"none":        {tun.Offload{}, 8 * 8},
	} {
		a, b := newRig(1, &sinkDevice{}), newRig(2, &sinkDevice{offload: c.offload})
		ab, _ := join(a, b)
		a.use(ab, natt.Path{Remote: addr4}, natt.Path{}, 1500)
		var packets []tun.Packet
		for i := range 8 {
			for f := range uint16(4) {
				s := segment(1, 100+f, 2, 80, tuntest.ACK, 1000)
				s.Seq = uint32(i * 1000)
				packets = append(packets, s.Partial(0), datagram(1, 200+f, 2, 53, 1000).Partial(0))
			}
		}
		a.send(packets...)
		var msgs []natt.Message
		for _, m := range a.socket.take() {
			msgs = append(msgs, natt.Message{Buf: bytes.Clone(m.Buf), N: len(m.Buf), Segment: m.Segment, Addr: addr4})
		}
		b.in.batch(msgs)
		d := b.device.(*sinkDevice)
		if d.packets != c.most {
			t.Errorf("%s: %d writes for 64 packets of 8 flows, want %d; drops %v", name, d.packets, c.most, b.drops.counts())
		}
	}
}

// Numbered packets of several flows that flood the way keep their order,
// however they are bundled.
func TestOrderUnderLoad(t *testing.T) {
	w := newWire(t, netip.MustParseAddr("127.0.0.1"), natt.ListenConfig{}, allOffloads)
	next := map[uint16]uint32{}
	for round := range 50 {
		var packets []tun.Packet
		for i := range 200 {
			s := datagram(1, uint16(5000+i%7), 2, 53, 8+i%3*400)
			binary.BigEndian.PutUint32(s.Payload, uint32(round*200+i))
			packets = append(packets, s.Partial(0))
		}
		for len(packets) > 0 { // in pieces, as the device gives them
			n := min(len(packets), 1+round)
			w.a.send(packets[:n]...)
			packets = packets[n:]
		}
		for _, p := range w.collect(200) {
			port, number := binary.BigEndian.Uint16(p[40:]), binary.BigEndian.Uint32(p[48:])
			if number < next[port] {
				t.Fatalf("flow %d: %d after %d", port, number, next[port])
			}
			next[port] = number + 1
		}
	}
}

// A sender that never waits for the receiver, so that both queues are full and
// packets are lost: of what comes, none overtakes another of its flow, single
// datagrams and the segments of superpackets alike.
func TestOrderUnderFlood(t *testing.T) {
	t.Parallel()
	bursts := 300
	if raceEnabled || testing.Short() {
		bursts = 60
	}
	w := newWire(t, netip.MustParseAddr("127.0.0.1"), natt.ListenConfig{}, allOffloads)
	over := make(chan struct{})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		seq := uint32(0)
		for number := range uint32(bursts) {
			var packets []tun.Packet
			for i := range uint32(64) {
				d := datagram(1, uint16(5000+i%7), 2, 53, 8+int(i)%3*400)
				binary.BigEndian.PutUint32(d.Payload, number*64+i)
				packets = append(packets, d.Partial(0))
				if i%16 == 0 {
					s := segment(1, uint16(7000+i/16), 2, 80, tuntest.ACK, 20_000)
					s.Seq = seq
					packets = append(packets, s.Partial(1000))
				}
			}
			seq += 20_000
			w.a.send(packets...)
		}
		last := datagram(1, 9, 2, 9, 8) // until one of them comes
		for {
			w.a.send(last.Partial(0))
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	next, got := map[uint16]uint64{}, 0
	for ended := false; !ended; {
		for _, p := range w.collect(1) {
			port, number := binary.BigEndian.Uint16(p[40:]), uint64(binary.BigEndian.Uint32(p[48:]))
			if port == 9 {
				ended = true
				continue
			}
			if p[6] == tuntest.TCP {
				number = uint64(binary.BigEndian.Uint32(p[44:]))
			}
			if number < next[port] {
				t.Fatalf("flow %d: %d after %d", port, number, next[port]-1)
			}
			next[port] = number + 1
			got++
		}
	}
	close(over)
	<-sent
	if all := bursts * (64 + 4*20); got < all/100 || len(next) != 11 {
		t.Errorf("%d of %d packets of %d flows came; drops %v", got, all, len(next), w.b.drops.counts())
	}
}
