package rendezvous

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// An ownSocket returns a socket as the server opens it.
func ownSocket(t testing.TB) natt.PacketConn {
	t.Helper()
	c, err := natt.Listen(natt.ListenConfig{Addr: netip.MustParseAddrPort("127.0.0.1:0"), PacketInfo: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// take reads from a socket until it has so many bytes.
func take(t testing.TB, c natt.PacketConn, in []natt.Message, bytes int) {
	t.Helper()
	for bytes > 0 {
		n, err := c.ReadBatch(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in[:n] {
			bytes -= m.N
		}
	}
}

// Frames a second that one reader forwards between sockets of the kernel: from its
// receive call to the end of its send call, which on the loopback device holds the
// kernel's whole way to the receiver. The senders and receivers are not counted.
// Runs of 16 frames of 64 channels, and single frames.
func BenchmarkForwardLoopback(b *testing.B) {
	const channels, size, together = 64, 1280, 8
	for name, run := range map[string]int{"run16": 16, "single": 1} {
		b.Run(name, func(b *testing.B) {
			visitor, own, target := ownSocket(b), ownSocket(b), ownSocket(b)
			r, _ := forwarderOn(b, own)
			var numbers []uint64
			for i := range channels {
				home := &session{number: uint64(i + 1)}
				binary.BigEndian.PutUint32(home.agent[:], uint32(i+1))
				home.bind.Store(&binding{addr: target.LocalAddr(), sock: r.sock})
				r.s.table.homes[home.agent] = home
				c := r.s.table.visit(binding{addr: visitor.LocalAddr(), sock: r.sock}, home.agent, 1, 1e6)
				c.answered.Store(true)
				numbers = append(numbers, c.visitorNumber)
			}
			out := make([]natt.Message, together)
			for i := range out {
				out[i] = natt.Message{Buf: frames(0, run, size), Addr: own.LocalAddr()}
				if run > 1 {
					out[i].Segment = size
				}
			}
			in := make([]natt.Message, target.BatchSize())
			for i := range in {
				in[i].Buf = make([]byte, natt.MaxRun)
			}
			var took time.Duration
			done := 0
			b.ReportAllocs()
			for next := 0; done < b.N; done += together * run {
				for i := range out {
					for j := 0; j < run*size; j += size {
						relay.PutFrameHeader(out[i].Buf[j:], numbers[next%channels])
					}
					next++
				}
				if _, err := visitor.WriteBatch(out); err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				for left := together * run * size; left > 0; {
					n, err := r.batch()
					if err != nil {
						b.Fatal(err)
					}
					left -= n
				}
				took += time.Since(began)
				take(b, target, in, together*run*size)
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(done), "ns/op")
			b.ReportMetric(float64(done)/took.Seconds(), "frames/s")
		})
	}
}
