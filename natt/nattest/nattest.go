// Package nattest holds the conformance suite of natt.PacketConn: what every implementation does alike, kernel socket or
// in memory. An implementation's test calls Conformance with a function that opens two connected sockets.
package nattest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt"
)

// Pair is two sockets that reach each other, and the address of each as the other sees it.
type Pair struct {
	A, B         natt.PacketConn
	AddrA, AddrB netip.AddrPort
}

// patience is how long a test waits for datagrams that must come.
const patience = 10 * time.Second

// Conformance runs the suite. It closes the sockets that open returns.
func Conformance(t *testing.T, open func(t *testing.T) Pair) {
	for name, test := range map[string]func(*testing.T, Pair){
		"Single":     testSingle,
		"Reply":      testReply,
		"Batch":      testBatch,
		"Run":        testRun,
		"LongRun":    testLongRun,
		"Mixed":      testMixed,
		"Borrowed":   testBorrowed,
		"TooLarge":   testTooLarge,
		"BadAddress": testBadAddress,
		"SmallBuf":   testSmallBuf,
		"Writers":    testWriters,
		"Close":      testClose,
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t)
			t.Cleanup(func() {
				p.A.Close()
				p.B.Close()
			})
			test(t, p)
		})
	}
}

// A Datagram is one datagram as it was received.
type Datagram struct {
	From netip.AddrPort
	To   netip.Addr
	Data []byte
}

// Collect reads datagrams from c until it has n of them, runs taken apart, and stops the test if they do not come.
func Collect(t *testing.T, c natt.PacketConn, n int) []Datagram {
	t.Helper()
	late := time.AfterFunc(patience, func() { c.Close() })
	defer late.Stop()
	m := make([]natt.Message, c.BatchSize())
	for i := range m {
		m[i].Buf = make([]byte, natt.MaxRun)
	}
	var got []Datagram
	for len(got) < n {
		k, err := c.ReadBatch(m)
		if err != nil {
			t.Fatalf("after %d of %d datagrams: %v", len(got), n, err)
		}
		if k == 0 {
			t.Fatal("ReadBatch returned nothing")
		}
		for i := range m[:k] {
			for d := range Datagrams(&m[i]) {
				got = append(got, Datagram{m[i].Addr, m[i].Local, bytes.Clone(d)})
			}
		}
	}
	if len(got) > n {
		t.Fatalf("%d datagrams, want %d", len(got), n)
	}
	return got
}

// Datagrams takes a received run apart.
func Datagrams(m *natt.Message) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		b, size := m.Buf[:m.N], m.Segment
		if size == 0 {
			size = m.N
		}
		for {
			n := min(size, len(b))
			if !yield(b[:n]) || len(b) == n {
				return
			}
			b = b[n:]
		}
	}
}

// pattern returns size bytes that tell their number.
func pattern(number, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(number*7 + i*3)
	}
	if size >= 4 {
		binary.BigEndian.PutUint32(b, uint32(number))
	}
	return b
}

func send(t *testing.T, c natt.PacketConn, m ...natt.Message) {
	t.Helper()
	if n, err := c.WriteBatch(m); err != nil || n != len(m) {
		t.Fatalf("WriteBatch: %d of %d, %v", n, len(m), err)
	}
}

func expect(t *testing.T, got []Datagram, from netip.AddrPort, want [][]byte) {
	t.Helper()
	for i := range want {
		if !bytes.Equal(got[i].Data, want[i]) {
			t.Fatalf("datagram %d: %d bytes % x..., want %d bytes % x...", i,
				len(got[i].Data), got[i].Data[:min(8, len(got[i].Data))], len(want[i]), want[i][:min(8, len(want[i]))])
		}
		if got[i].From != from {
			t.Fatalf("datagram %d from %v, want %v", i, got[i].From, from)
		}
	}
}

func testSingle(t *testing.T, p Pair) {
	want := pattern(1, 1200)
	send(t, p.A, natt.Message{Buf: want, Addr: p.AddrB})
	expect(t, Collect(t, p.B, 1), p.AddrA, [][]byte{want})
	send(t, p.A, natt.Message{Buf: want, Segment: len(want), Addr: p.AddrB})
	expect(t, Collect(t, p.B, 1), p.AddrA, [][]byte{want})
	if p.A.BatchSize() < 1 || p.A.LocalAddr().Port() == 0 {
		t.Errorf("batch size %d, local address %v", p.A.BatchSize(), p.A.LocalAddr())
	}
}

func testReply(t *testing.T, p Pair) {
	send(t, p.A, natt.Message{Buf: pattern(1, 100), Addr: p.AddrB})
	d := Collect(t, p.B, 1)[0]
	send(t, p.B, natt.Message{Buf: pattern(2, 100), Addr: d.From, Local: d.To})
	expect(t, Collect(t, p.A, 1), p.AddrB, [][]byte{pattern(2, 100)})
}

func testBatch(t *testing.T, p Pair) {
	var m []natt.Message
	var want [][]byte
	for i := range 100 { // more than a batch holds
		b := pattern(i, 1+i*11)
		want = append(want, b)
		m = append(m, natt.Message{Buf: b, Addr: p.AddrB})
	}
	send(t, p.A, m...)
	expect(t, Collect(t, p.B, len(want)), p.AddrA, want)
}

func run(first, count, size, last int) (b []byte, want [][]byte) {
	for i := range count {
		want = append(want, pattern(first+i, size))
	}
	if last > 0 {
		want = append(want, pattern(first+count, last))
	}
	return slices.Concat(want...), want
}

func testRun(t *testing.T, p Pair) {
	b, want := run(0, 20, 1000, 10)
	send(t, p.A, natt.Message{Buf: b, Segment: 1000, Addr: p.AddrB})
	expect(t, Collect(t, p.B, len(want)), p.AddrA, want)
}

// testLongRun sends a run beyond the limits of UDP_SEGMENT.
func testLongRun(t *testing.T, p Pair) {
	b, want := run(0, 200, 1200, 7)
	send(t, p.A, natt.Message{Buf: b, Segment: 1200, Addr: p.AddrB})
	expect(t, Collect(t, p.B, len(want)), p.AddrA, want)
}

func testMixed(t *testing.T, p Pair) {
	var m []natt.Message
	var want [][]byte
	for i := range 12 {
		size := 100 + i*50
		b, w := run(i*100, i%4+1, size, i%3*20)
		m = append(m, natt.Message{Buf: b, Segment: size, Addr: p.AddrB}, natt.Message{Buf: pattern(i, 33), Addr: p.AddrB})
		want = append(append(want, w...), pattern(i, 33))
	}
	send(t, p.A, m...)
	expect(t, Collect(t, p.B, len(want)), p.AddrA, want)
}

// testBorrowed overwrites buffers as soon as they are the caller's again.
func testBorrowed(t *testing.T, p Pair) {
	b, want := run(0, 3, 500, 0)
	send(t, p.A, natt.Message{Buf: b, Segment: 500, Addr: p.AddrB})
	clear(b)
	expect(t, Collect(t, p.B, len(want)), p.AddrA, want)
}

func testTooLarge(t *testing.T, p Pair) {
	m := []natt.Message{
		{Buf: pattern(0, 100), Addr: p.AddrB},
		{Buf: make([]byte, 70000), Addr: p.AddrB},
		{Buf: pattern(2, 100), Addr: p.AddrB},
	}
	n, err := p.A.WriteBatch(m)
	if n != 1 || !errors.Is(err, syscall.EMSGSIZE) {
		t.Fatalf("WriteBatch: %d, %v", n, err)
	}
	checkFailed(t, err, p.AddrB, 1)
	expect(t, Collect(t, p.B, 2), p.AddrA, [][]byte{m[0].Buf, m[2].Buf})
}

func testBadAddress(t *testing.T, p Pair) {
	m := []natt.Message{
		{Buf: pattern(0, 100), Addr: p.AddrB},
		{Buf: pattern(1, 100)},
		{Buf: pattern(2, 100), Addr: p.AddrB},
		{Buf: pattern(3, 100)},
	}
	n, err := p.A.WriteBatch(m)
	if n != 1 || err == nil {
		t.Fatalf("WriteBatch: %d, %v", n, err)
	}
	checkFailed(t, err, netip.AddrPort{}, 1, 3)
	expect(t, Collect(t, p.B, 2), p.AddrA, [][]byte{m[0].Buf, m[2].Buf})
}

func checkFailed(t *testing.T, err error, addr netip.AddrPort, index ...int) {
	t.Helper()
	var failed *natt.WriteError
	if !errors.As(err, &failed) || !slices.Equal(failed.Failed, index) || failed.Addr != addr {
		t.Fatalf("error %#v, want messages %v to %v", err, index, addr)
	}
}

func testSmallBuf(t *testing.T, p Pair) {
	send(t, p.A, natt.Message{Buf: pattern(0, 1000), Addr: p.AddrB})
	m := []natt.Message{{Buf: make([]byte, 100)}}
	late := time.AfterFunc(patience, func() { p.B.Close() })
	defer late.Stop()
	if n, err := p.B.ReadBatch(m); n != 1 || err != nil || m[0].N > 100 || m[0].Segment != 0 {
		t.Fatalf("ReadBatch: %d, %v, %+v", n, err, m[0])
	}
	send(t, p.A, natt.Message{Buf: pattern(1, 1000), Addr: p.AddrB})
	expect(t, Collect(t, p.B, 1), p.AddrA, [][]byte{pattern(1, 1000)})
}

func testWriters(t *testing.T, p Pair) {
	const writers, each = 4, 100
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				b, _ := run(w*each*10+i*2, 2, 300, 0)
				if _, err := p.A.WriteBatch([]natt.Message{{Buf: b, Segment: 300, Addr: p.AddrB}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var next [writers]uint32
	for _, d := range Collect(t, p.B, writers*each*2) {
		number := binary.BigEndian.Uint32(d.Data)
		w := number / (each * 10)
		if got := number % (each * 10); got != next[w] || !bytes.Equal(d.Data, pattern(int(number), 300)) {
			t.Fatalf("writer %d: datagram %d, want %d", w, got, next[w])
		}
		next[w]++
	}
	group.Wait()
}

func testClose(t *testing.T, p Pair) {
	ended := make(chan error, 2)
	go func() {
		m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
		for {
			if _, err := p.A.ReadBatch(m); err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		for {
			n, err := p.A.WriteBatch([]natt.Message{{Buf: pattern(0, 100), Addr: p.AddrB}})
			if err != nil {
				ended <- fmt.Errorf("%d sent: %w", n, err)
				return
			}
		}
	}()
	Collect(t, natt.PacketConn(first{p.B}), 1)
	if err := p.A.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("error after Close: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Close does not wake reader and writer")
		}
	}
	if _, err := p.A.ReadBatch(make([]natt.Message, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadBatch after Close: %v", err)
	}
	p.A.Close() // twice is allowed
}

// first reads one message at a time, of which it shows one datagram, so that a flood can be waited for.
type first struct{ natt.PacketConn }

func (f first) BatchSize() int { return 1 }

func (f first) ReadBatch(m []natt.Message) (int, error) {
	n, err := f.PacketConn.ReadBatch(m[:1])
	if m[0].Segment > 0 {
		m[0].N, m[0].Segment = m[0].Segment, 0
	}
	return n, err
}
