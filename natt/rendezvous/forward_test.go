package rendezvous

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// A sink is a socket that only counts what is sent, and keeps it if asked to.
type sink struct {
	keep            bool
	sent            []natt.Message
	messages, bytes int
}

func (s *sink) LocalAddr() netip.AddrPort { return netip.MustParseAddrPort("127.0.0.1:3478") }
func (s *sink) BatchSize() int            { return readBatch }
func (s *sink) Offload() natt.Offload     { return natt.Offload{GSO: true, GRO: true, Batch: true} }
func (s *sink) Close() error              { return nil }

func (s *sink) ReadBatch([]natt.Message) (int, error) { return 0, net.ErrClosed }

func (s *sink) WriteBatch(m []natt.Message) (int, error) {
	for _, m := range m {
		s.messages++
		s.bytes += len(m.Buf)
		if s.keep {
			m.Buf = bytes.Clone(m.Buf)
			s.sent = append(s.sent, m)
		}
	}
	return len(m), nil
}

var (
	visitorAddr = netip.MustParseAddrPort("192.0.2.1:1000")
	targetAddr  = netip.MustParseAddrPort("198.51.100.1:2000")
)

// forwarderOn returns the reader of a server that has one socket, and no limit.
func forwarderOn(t testing.TB, conn natt.PacketConn) (*reader, *Server) {
	t.Helper()
	key, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Key: key, Store: NewMemoryStore(), UDP: []natt.PacketConn{conn}, Limits: Limits{ChannelRate: 1 << 40}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	return newReader(s, s.sockets[0]), s
}

// newForwarder returns a reader of a server that has one agent and channels to
// it, open both ways.
func newForwarder(t testing.TB, channels int) (*reader, *sink, []*channel) {
	t.Helper()
	out := &sink{}
	r, s := forwarderOn(t, out)
	r.now = 1
	home := &session{number: 5, agent: crypto.Fingerprint{1}}
	home.bind.Store(&binding{addr: targetAddr, sock: s.sockets[0]})
	s.table.homes[home.agent] = home
	s.table.sessions[home.number] = home
	var all []*channel
	for i := range channels {
		from := binding{addr: netip.AddrPortFrom(visitorAddr.Addr(), uint16(1000+i)), sock: s.sockets[0]}
		c := s.table.visit(from, home.agent, 1, 1e6)
		c.answered.Store(true)
		c.proven.Store(true)
		all = append(all, c)
	}
	return r, out, all
}

func frames(number uint64, count, size int) []byte {
	b := make([]byte, count*size)
	for i := range count {
		relay.PutFrameHeader(b[i*size:], number)
		b[i*size+relay.FrameOverhead] = 6
		b[i*size+relay.FrameOverhead+1] = byte(i)
	}
	return b
}

func message(from netip.AddrPort, b []byte, size int) *natt.Message {
	return &natt.Message{Buf: b, N: len(b), Segment: size, Addr: from}
}

func TestForwardRuns(t *testing.T) {
	r, out, c := newForwarder(t, 2)
	out.keep = true
	b := append(frames(c[0].visitorNumber, 16, 1280), frames(c[0].visitorNumber, 1, 500)...) // a shorter last one
	r.message(message(visitorAddr, b, 1280))
	r.flush()
	want := append(frames(c[0].targetNumber, 16, 1280), frames(c[0].targetNumber, 1, 500)...)
	if len(out.sent) != 1 || out.sent[0].Addr != targetAddr || out.sent[0].Segment != 1280 || !bytes.Equal(out.sent[0].Buf, want) {
		t.Fatalf("%d messages", len(out.sent))
	}

	out.sent = nil // the other way, two channels in one run: two runs
	b = append(frames(c[0].targetNumber, 3, 100), frames(c[1].targetNumber, 1, 100)...)
	r.message(message(targetAddr, b, 100))
	r.flush()
	if len(out.sent) != 2 || out.sent[0].Addr != c[0].visitor.addr || out.sent[0].Segment != 100 ||
		!bytes.Equal(out.sent[0].Buf, frames(c[0].visitorNumber, 3, 100)) ||
		out.sent[1].Addr != c[1].visitor.addr || out.sent[1].Segment != 0 ||
		!bytes.Equal(out.sent[1].Buf, frames(c[1].visitorNumber, 1, 100)) {
		t.Fatalf("%d messages: %+v", len(out.sent), out.sent)
	}
}

// Only the two ends of a channel may use it, each with its own number.
func TestForwardBound(t *testing.T) {
	r, out, c := newForwarder(t, 1)
	out.keep = true
	stranger := netip.MustParseAddrPort("203.0.113.9:9")
	for _, m := range []*natt.Message{
		message(stranger, frames(c[0].visitorNumber, 1, 100), 0),
		message(stranger, frames(c[0].targetNumber, 1, 100), 0),
		message(visitorAddr, frames(c[0].targetNumber, 1, 100), 0),
		message(targetAddr, frames(c[0].visitorNumber, 1, 100), 0),
		message(visitorAddr, frames(77, 1, 100), 0),
		message(visitorAddr, frames(77, 1, relay.HintSize-1), 0), // too short to be answered
	} {
		r.message(m)
		r.flush()
	}
	if len(out.sent) != 5 {
		t.Fatalf("%d messages, want 5 hints", len(out.sent))
	}
	for i, m := range out.sent {
		if _, _, ok := relay.ParseHint(m.Buf); !ok {
			t.Errorf("message %d is no hint: % x", i, m.Buf)
		}
	}
}

func TestForwardQuota(t *testing.T) {
	r, out, c := newForwarder(t, 1)
	r.s.cfg.Limits.ChannelRate = 1_000_000
	second := int64(time.Second)
	for r.now = second; r.now < 11*second; r.now += second / 1000 {
		r.message(message(visitorAddr, frames(c[0].visitorNumber, 4, 1000), 1000)) // 4 MB/s offered
		r.flush()
	}
	if out.bytes < 10_000_000 || out.bytes > 10_400_000 {
		t.Errorf("%d bytes passed in 10 s at 1 MB/s", out.bytes)
	}
}

func TestForwardNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without -race")
	}
	r, _, c := newForwarder(t, 1)
	m := message(visitorAddr, nil, 1280)
	b := frames(c[0].visitorNumber, 16, 1280)
	one := func() {
		for i := 0; i < len(b); i += 1280 {
			relay.PutFrameHeader(b[i:], c[0].visitorNumber)
		}
		m.Buf, m.N = b, len(b)
		r.message(m)
		r.flush()
	}
	one()
	if n := testing.AllocsPerRun(1000, one); n != 0 {
		t.Errorf("%v allocations per run of 16 frames", n)
	}
}

// Frames a second of one reader, in runs of 16 as UDP_GRO delivers them and one by
// one, with 1,000 channels.
func BenchmarkForward(b *testing.B) {
	for name, run := range map[string]int{"run16": 16, "single": 1} {
		b.Run(name, func(b *testing.B) {
			r, _, c := newForwarder(b, 1000)
			buf := frames(0, run, 1280)
			m := natt.Message{Buf: buf, N: len(buf), Segment: 1280}
			b.ReportAllocs()
			b.SetBytes(1280)
			for i := 0; b.Loop(); i++ {
				if i%run != 0 {
					continue // ns/op is per frame
				}
				ch := c[i/run%len(c)]
				for j := 0; j < len(buf); j += 1280 {
					relay.PutFrameHeader(buf[j:], ch.visitorNumber)
				}
				m.Addr = ch.visitor.addr
				r.message(&m)
				r.flush()
			}
		})
	}
}
