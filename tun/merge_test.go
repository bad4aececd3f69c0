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

var offloads = tun.Offload{VNetHdr: true, TSO: true, USO: true}

// stream makes the packets of one flow, most of which can be merged.
type stream struct {
	next    tuntest.Segment
	size    int
	partial bool
}

func (s *stream) packet(r *rand.Rand) (pkt, complete []byte, partial bool) {
	q := s.next
	n := s.size
	partial = s.partial
	switch r.IntN(24) {
	case 0:
		n = r.IntN(s.size + 20)
	case 1:
		q.Class ^= 3
	case 2:
		q.Ack++
		s.next.Ack = q.Ack
	case 3:
		q.Flags |= []uint8{tuntest.PSH, tuntest.FIN, tuntest.CWR, tuntest.ECE, tuntest.URG, tuntest.SYN}[r.IntN(6)]
	case 4:
		q.Window++
	case 5:
		q.HopLimit++
	case 6:
		q.Label++
	case 7:
		q.Seq += uint32(r.IntN(3000))
	case 8:
		partial = !partial
	case 9:
		q.Options = bytes.Repeat([]byte{1}, (len(q.Options)+4)%44)
	}
	q.Payload = make([]byte, n)
	for i := range q.Payload {
		q.Payload[i] = byte(r.Uint32())
	}
	s.next.Seq = q.Seq + uint32(n)
	if !partial {
		return q.Complete(), q.Complete(), false
	}
	return q.Partial(0).Data, q.Complete(), true
}

func newStreams(r *rand.Rand, count int) []*stream {
	streams := make([]*stream, count)
	for i := range streams {
		proto := uint8(tuntest.TCP)
		if r.IntN(3) == 0 {
			proto = tuntest.UDP
		}
		s := random(r, proto, 0)
		s.Src = netip.AddrPortFrom(alice, uint16(i))
		s.Flags = tuntest.ACK
		streams[i] = &stream{next: s, size: 1 + r.IntN(1336), partial: r.IntN(8) > 0}
	}
	return streams
}

// flow is what order is promised within: addresses, protocol and ports.
func flow(pkt []byte) string { return string(pkt[6:7]) + string(pkt[8:44]) }

// restore cuts the packets of a Merger back into those that they came from.
func restore(t testing.TB, packets []tun.Packet) [][]byte {
	t.Helper()
	var out [][]byte
	for i, p := range packets {
		if p.Partial {
			seeded := join(p)
			if err := tun.SetPartial(seeded); err != nil || !bytes.Equal(seeded, join(p)) {
				t.Fatalf("packet %d: wrong seed (%v)", i, err)
			}
		}
		want := tuntest.Normalize(p)
		p.Data, p.Tail = join(p), nil
		got := cut(t, p, 65535)
		same(t, got, want)
		out = append(out, got...)
	}
	return out
}

func join(p tun.Packet) []byte {
	b := bytes.Clone(p.Data)
	for _, t := range p.Tail {
		b = append(b, t...)
	}
	return b
}

// FuzzMerge sends many interleaved flows through a Merger, cuts what it returns
// and expects each flow's packets back, byte by byte and in order.
func FuzzMerge(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, 1+int(seed*3), 200)
	}
	f.Fuzz(func(t *testing.T, seed uint64, flows, count int) {
		if flows < 1 || flows > 200 || count < 0 || count > 2000 {
			t.Skip()
		}
		r := rand.New(rand.NewPCG(seed, 0))
		streams := newStreams(r, flows)
		m := tun.NewMerger(offloads)
		for range 3 {
			sent := make(map[string][][]byte)
			for range count {
				pkt, complete, partial := streams[r.IntN(flows)].packet(r)
				sent[flow(complete)] = append(sent[flow(complete)], complete)
				if err := m.Add(pkt, partial); err != nil {
					t.Fatal(err)
				}
			}
			got := make(map[string][][]byte)
			for _, pkt := range restore(t, m.Flush()) {
				got[flow(pkt)] = append(got[flow(pkt)], pkt)
			}
			for f, want := range sent {
				same(t, got[f], want)
				delete(got, f)
			}
			if len(got) > 0 || m.Len() != 0 {
				t.Fatalf("%d flows out of nothing, %d packets left", len(got), m.Len())
			}
		}
	})
}

// FuzzMerger gives the Merger two packets of any bytes.
func FuzzMerger(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	s := random(r, tuntest.UDP, 30)
	f.Add(s.Complete(), s.Complete(), true, true)
	f.Add(s.Complete(), []byte{}, true, false)
	f.Fuzz(func(t *testing.T, a, b []byte, partialA, partialB bool) {
		m := tun.NewMerger(offloads)
		n := 0
		for _, c := range []struct {
			pkt     []byte
			partial bool
		}{{a, partialA}, {b, partialB}} {
			if err := m.Add(c.pkt, c.partial); err == nil {
				n += len(c.pkt)
			} else if !c.partial || !errors.Is(err, tun.ErrMalformed) {
				t.Fatal(err)
			}
		}
		for _, p := range m.Flush() {
			if p.SegmentSize > 0 {
				n -= 40 + 8
				if p.Data[6] == tuntest.TCP {
					n -= int(p.Data[52]>>4)*4 - 8
				}
			}
			n -= p.Len()
		}
		if n != 0 {
			t.Fatalf("%d octets lost", n)
		}
	})
}

// segments returns the packets of a bulk transfer: count full segments.
func segments(src uint16, proto uint8, count, size int) [][]byte {
	s := tuntest.Segment{
		Src: netip.AddrPortFrom(bob, src), Dst: netip.AddrPortFrom(alice, 80), Proto: proto, HopLimit: 64,
		Flags: tuntest.ACK, Window: 500, Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
	}
	var out [][]byte
	for i := range count {
		s.Payload = bytes.Repeat([]byte{byte(i)}, size)
		out = append(out, s.Partial(0).Data)
		s.Seq += uint32(size)
	}
	return out
}

func add(t testing.TB, m *tun.Merger, pkt []byte, partial bool) {
	t.Helper()
	if err := m.Add(pkt, partial); err != nil {
		t.Fatal(err)
	}
}

func TestMergeInterleaved(t *testing.T) {
	const flows, each = 16, 40
	var packets [flows][][]byte
	for i := range packets {
		proto := []uint8{tuntest.TCP, tuntest.UDP}[i%2]
		packets[i] = segments(uint16(1000+i*7919), proto, each, 1000)
	}
	m := tun.NewMerger(offloads)
	for j := range each {
		for i := range flows {
			add(t, m, packets[i][j], true)
		}
	}
	if got := m.Flush(); len(got) != flows {
		t.Errorf("%d packets, want one for each of %d flows", len(got), flows)
	}
}

func TestMergeLimits(t *testing.T) {
	count := func(o tun.Offload, pkts [][]byte, partial bool) int {
		m := tun.NewMerger(o)
		for _, p := range pkts {
			add(t, m, p, partial)
		}
		return len(m.Flush())
	}
	for _, c := range []struct {
		name string
		got  int
		want int
	}{
		{"64 datagrams", count(offloads, segments(1, tuntest.UDP, 64, 10), true), 1},
		{"65 datagrams", count(offloads, segments(1, tuntest.UDP, 65, 10), true), 2},
		{"datagrams without USO", count(tun.Offload{VNetHdr: true, TSO: true}, segments(1, tuntest.UDP, 9, 10), true), 9},
		{"segments without TSO", count(tun.Offload{VNetHdr: true}, segments(1, tuntest.TCP, 9, 10), true), 9},
		{"complete checksums", count(offloads, segments(1, tuntest.TCP, 9, 10), false), 9},
		{"64 KiB", count(offloads, segments(1, tuntest.TCP, 66, 1000), true), 2},
		{"many tiny segments", count(offloads, segments(1, tuntest.TCP, 513, 1), true), 2},
		{"no payload", count(offloads, segments(1, tuntest.TCP, 9, 0), true), 9},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d packets, want %d", c.name, c.got, c.want)
		}
	}
}

func TestMergeKeepsFragmentsBehind(t *testing.T) {
	m := tun.NewMerger(offloads)
	pkts := segments(1, tuntest.UDP, 4, 100)
	fragment := tuntest.Segment{
		Src: netip.AddrPortFrom(bob, 0), Dst: netip.AddrPortFrom(alice, 0), Proto: 44, HopLimit: 64,
		Payload: []byte{17, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 80, 0, 16, 0, 0},
	}.Complete()
	ping := tuntest.Segment{
		Src: netip.AddrPortFrom(bob, 0), Dst: netip.AddrPortFrom(alice, 0), Proto: tuntest.ICMPv6, HopLimit: 64,
		Payload: []byte{128, 0, 0, 0, 0, 1, 0, 1},
	}.Complete()
	add(t, m, pkts[0], true)
	add(t, m, ping, false)
	add(t, m, pkts[1], true)
	add(t, m, fragment, false)
	add(t, m, pkts[2], true)
	add(t, m, pkts[3], true)
	if err := m.Add(fragment, true); !errors.Is(err, tun.ErrMalformed) {
		t.Errorf("partial fragment: %v", err)
	}
	got := m.Flush()
	if len(got) != 4 || len(got[0].Tail) != 1 || got[1].Data[6] != tuntest.ICMPv6 || got[2].Data[6] != 44 || len(got[3].Tail) != 1 {
		t.Errorf("order: %d packets %v", len(got), got)
	}
}

func TestAllocMerge(t *testing.T) {
	skipUnderRace(t)
	pkts := append(segments(1, tuntest.TCP, 40, 1336), segments(2, tuntest.UDP, 40, 64)...)
	var saved [2][60]byte // Flush changes the first packet of a superpacket
	copy(saved[0][:], pkts[0])
	copy(saved[1][:], pkts[40])
	m := tun.NewMerger(offloads)
	if n := testing.AllocsPerRun(100, func() {
		copy(pkts[0], saved[0][:])
		copy(pkts[40], saved[1][:])
		for _, p := range pkts {
			add(t, m, p, true)
		}
		m.Flush()
	}); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

func BenchmarkMerge(b *testing.B) {
	bench := func(name string, flows [][][]byte) {
		b.Run(name, func(b *testing.B) {
			m := tun.NewMerger(offloads)
			// Merging changes the first packet of a superpacket: restore it.
			saved := make([][]byte, len(flows))
			for i, f := range flows {
				saved[i] = bytes.Clone(f[0][:60])
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i, f := range flows {
					copy(f[0], saved[i])
				}
				for j := range flows[0] {
					for _, f := range flows {
						if err := m.Add(f[j], true); err != nil {
							b.Fatal(err)
						}
						n++
					}
				}
				m.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
		})
	}
	bench("tcp", [][][]byte{segments(1, tuntest.TCP, 44, 1336)})
	bench("udp", [][][]byte{segments(1, tuntest.UDP, 64, 64)})
	var four, hundred [][][]byte
	for i := range uint16(100) {
		hundred = append(hundred, segments(i*7919, tuntest.TCP, 5, 1336))
		if i < 4 {
			four = append(four, segments(i*7919, tuntest.TCP, 44, 1336))
		}
	}
	bench("tcp4", four)
	bench("tcp100", hundred)
}
