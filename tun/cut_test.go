package tun_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// Two agents, as in the address plan.
var (
	alice = netip.MustParseAddr("fd50:494c:4f54::0:1001")
	bob   = netip.MustParseAddr("fd50:494c:4f54::0:1002")
)

// cut returns copies of a packet's segments, complete with checksums.
func cut(t testing.TB, p tun.Packet, limit int) [][]byte {
	t.Helper()
	var c tun.Cutter
	if err := c.Reset(p, limit); err != nil {
		t.Fatalf("reset: %v", err)
	}
	var out [][]byte
	left := c.Segments()
	for seg := c.Next(); seg != nil; seg = c.Next() {
		if left--; c.Segments() != left {
			t.Fatalf("%d segments left, want %d", c.Segments(), left)
		}
		seg = bytes.Clone(seg)
		if c.Partial() {
			// The seed is right, so SetPartial changes nothing.
			before := bytes.Clone(seg)
			if err := tun.SetPartial(seg); err != nil || !bytes.Equal(before, seg) {
				t.Fatalf("segment %d: wrong seed (%v)", len(out), err)
			}
			if err := tun.CompleteChecksum(seg); err != nil {
				t.Fatalf("segment %d: %v", len(out), err)
			}
		}
		out = append(out, seg)
	}
	if left != 0 {
		t.Fatalf("%d segments announced too many", left)
	}
	return out
}

func same(t testing.TB, got, want [][]byte) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d of %d differs:\n got %x\nwant %x", i, len(want), got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
}

// random returns a segment with every field drawn by chance.
func random(r *rand.Rand, proto uint8, payload int) tuntest.Segment {
	s := tuntest.Segment{
		Src:   netip.AddrPortFrom(alice, uint16(r.Uint32())),
		Dst:   netip.AddrPortFrom(bob, uint16(r.Uint32())),
		Proto: proto, Class: uint8(r.Uint32()), Label: r.Uint32(), HopLimit: uint8(r.Uint32()),
		Payload: make([]byte, payload),
	}
	for i := range s.Payload {
		s.Payload[i] = byte(r.Uint32())
	}
	if proto == tuntest.TCP {
		s.Seq, s.Ack, s.Flags = r.Uint32(), r.Uint32(), uint8(r.Uint32())
		s.Window, s.Urgent = uint16(r.Uint32()), uint16(r.Uint32())
		s.Options = bytes.Repeat([]byte{1}, 4*r.IntN(11))
	}
	return s
}

// FuzzCut compares the cut of a superpacket with the slow reference, whatever
// its fields, size, segment size and limit.
func FuzzCut(f *testing.F) {
	f.Add(uint64(1), true, 60000, 1336, 1408)
	f.Add(uint64(2), true, 60000, 1336, 1120)
	f.Add(uint64(3), true, 100, 1, 1280)
	f.Add(uint64(4), true, 1336, 1336, 1408)
	f.Add(uint64(5), true, 65000, 65000, 1280)
	f.Add(uint64(6), false, 60000, 1360, 1408)
	f.Add(uint64(7), false, 64, 1, 1280)
	f.Add(uint64(8), false, 5000, 2000, 1280)
	f.Fuzz(func(t *testing.T, seed uint64, tcp bool, payload, size, limit int) {
		if payload < 1 || payload > 65535-100 || size < 1 || size > 65535 || limit < 200 || limit > 65535 {
			t.Skip()
		}
		r := rand.New(rand.NewPCG(seed, 0))
		proto := uint8(tuntest.UDP)
		if tcp {
			proto = tuntest.TCP
		}
		s := random(r, proto, payload)
		p := s.Partial(size)
		want := p
		if hl := len(p.Data) - payload; tcp {
			want.SegmentSize = min(size, limit-hl)
		}
		segments := tuntest.Normalize(want)
		same(t, cut(t, p, limit), segments)
	})
}

// FuzzCutter gives the Cutter and the checksum functions any bytes at all.
func FuzzCutter(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	f.Add(random(r, tuntest.TCP, 3000).Complete(), 1000, 1280, true)
	f.Add(random(r, tuntest.UDP, 3000).Complete(), 0, 1280, false)
	f.Add([]byte{0x60}, 1, 1, true)
	f.Fuzz(func(t *testing.T, b []byte, size, limit int, partial bool) {
		if len(b) > 65535 {
			t.Skip()
		}
		total := 0
		var c tun.Cutter
		err := c.Reset(tun.Packet{Data: bytes.Clone(b), SegmentSize: size, Partial: partial}, limit)
		if err != nil && !errors.Is(err, tun.ErrMalformed) {
			t.Fatal(err)
		}
		n := c.Segments()
		for seg := c.Next(); seg != nil; seg = c.Next() {
			total += len(seg)
			if n > 1 && b[6] == tuntest.TCP && len(seg) > limit {
				t.Fatalf("segment of %d octets exceeds %d", len(seg), limit)
			}
			n--
		}
		if n != 0 || err == nil && total < len(b) {
			t.Fatalf("%d segments missing, %d of %d octets", n, total, len(b))
		}
		tun.SetPartial(bytes.Clone(b))
		tun.CompleteChecksum(bytes.Clone(b))
	})
}

func TestCutSinglePacket(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	data := random(r, tuntest.TCP, 1300)
	data.Flags, data.Options = tuntest.ACK|tuntest.PSH, []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	whole := data.Complete()
	const limit = 1120
	split := data.Partial(limit - 72)
	for name, c := range map[string]struct {
		p    tun.Packet
		want [][]byte
	}{
		"fits":             {tun.Packet{Data: data.Complete()[:len(whole):len(whole)]}, nil},
		"partial checksum": {data.Partial(0), tuntest.Normalize(split)},
		"right checksum":   {tun.Packet{Data: data.Complete()}, tuntest.Normalize(split)},
		"wrong checksum":   {tun.Packet{Data: damaged(data)}, [][]byte{damaged(data)}},
		"signed by option": {with(data, func(s *tuntest.Segment) { s.Options = append([]byte{19, 18}, make([]byte, 18)...) }), nil},
		"bad option":       {with(data, func(s *tuntest.Segment) { s.Options = []byte{8, 0, 0, 0} }), nil},
		"urgent":           {with(data, func(s *tuntest.Segment) { s.Flags |= tuntest.URG }), nil},
		"syn":              {with(data, func(s *tuntest.Segment) { s.Flags = tuntest.SYN }), nil},
		"datagram":         {with(data, func(s *tuntest.Segment) { s.Proto = tuntest.UDP }), nil},
		"ping":             {with(data, func(s *tuntest.Segment) { s.Proto = tuntest.ICMPv6 }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == nil {
				c.want = [][]byte{bytes.Clone(c.p.Data)}
			}
			l := limit
			if name == "fits" {
				l = len(whole)
			}
			same(t, cut(t, c.p, l), c.want)
		})
	}
}

func damaged(s tuntest.Segment) []byte {
	b := s.Complete()
	b[len(b)-1] ^= 1
	return b
}

func with(s tuntest.Segment, change func(*tuntest.Segment)) tun.Packet {
	change(&s)
	return tun.Packet{Data: s.Complete()}
}

func TestCutRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	tcp, udp := random(r, tuntest.TCP, 5000), random(r, tuntest.UDP, 50)
	fragment := random(r, 44, 100).Complete()
	wrong := udp.Partial(0)
	wrong.Data[45]++
	for name, c := range map[string]struct {
		p     tun.Packet
		limit int
	}{
		"no room":          {tcp.Partial(1000), 60},
		"partial fragment": {tun.Packet{Data: fragment, Partial: true}, 1280},
		"super fragment":   {tun.Packet{Data: fragment, SegmentSize: 8}, 1280},
		"empty":            {tun.Packet{Partial: true}, 1280},
		"scattered":        {tun.Packet{Data: udp.Complete(), Tail: [][]byte{{1}}}, 1280},
		"wrong length":     {tun.Packet{Data: wrong.Data, SegmentSize: 100}, 1280},
	} {
		var cutter tun.Cutter
		if err := cutter.Reset(c.p, c.limit); !errors.Is(err, tun.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
		if cutter.Next() != nil {
			t.Errorf("%s: a segment after an error", name)
		}
	}
}

func TestChecksum(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for n := range 300 {
		for _, proto := range []uint8{tuntest.TCP, tuntest.UDP} {
			s := random(r, proto, n)
			got := s.Partial(0).Data
			if err := tun.CompleteChecksum(got); err != nil {
				t.Fatal(err)
			}
			same(t, [][]byte{got}, [][]byte{s.Complete()})
		}
	}
	// A datagram whose sum comes to zero is sent with all ones.
	s := random(r, tuntest.UDP, 2)
	s.Payload[0], s.Payload[1] = 0, 0
	b := s.Complete()
	s.Payload[0], s.Payload[1] = b[46], b[47]
	b = s.Partial(0).Data
	if err := tun.CompleteChecksum(b); err != nil || b[46] != 0xff || b[47] != 0xff {
		t.Errorf("checksum %x, %v; want ffff", b[46:48], err)
	}
}

func TestAllocCut(t *testing.T) {
	skipUnderRace(t)
	r := rand.New(rand.NewPCG(5, 5))
	p := random(r, tuntest.TCP, 60000).Partial(1336)
	var c tun.Cutter
	if n := testing.AllocsPerRun(100, func() {
		if err := c.Reset(p, 1408); err != nil {
			t.Fatal(err)
		}
		for seg := c.Next(); seg != nil; seg = c.Next() {
			sink = seg
		}
	}); n != 0 {
		t.Errorf("%v allocations per superpacket", n)
	}
}

var sink []byte

func BenchmarkCut(b *testing.B) {
	r := rand.New(rand.NewPCG(6, 6))
	for name, limit := range map[string]int{"segments": 1408, "budget": 1120} {
		b.Run(name, func(b *testing.B) {
			s := random(r, tuntest.TCP, 45*1336)
			s.Options = s.Options[:0]
			p := s.Partial(1348)
			b.SetBytes(int64(len(p.Data)))
			b.ReportAllocs()
			var c tun.Cutter
			n := 0
			for b.Loop() {
				if err := c.Reset(p, limit); err != nil {
					b.Fatal(err)
				}
				for seg := c.Next(); seg != nil; seg = c.Next() {
					n++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/segment")
		})
	}
}

func BenchmarkCompleteChecksum(b *testing.B) {
	p := random(rand.New(rand.NewPCG(7, 7)), tuntest.TCP, 1336).Complete()
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := tun.CompleteChecksum(p); err != nil {
			b.Fatal(err)
		}
	}
}
