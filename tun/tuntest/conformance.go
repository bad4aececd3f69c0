package tuntest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pilotnet/pilot/tun"
)

// A Host is the side of a device that is not ours: the kernel, or what stands
// for it in a test.
type Host interface {
	// Inject sends a packet or superpacket into the device, for Device.Read.
	Inject(p tun.Packet) error
	// Receive returns the next packet that Device.Write gave to the host.
	Receive(ctx context.Context) (tun.Packet, error)
}

// Hosts used by the suite. Neither may be an address of the host's own, so that
// nothing answers.
var (
	near = netip.MustParseAddr("fd50:494c:4f54::aaaa:1")
	far  = netip.MustParseAddr("fd50:494c:4f54::bbbb:1")
)

// Conformance checks that a device keeps the promises of tun.Device. Each
// subtest calls open for a device of its own, closed by the suite.
func Conformance(t *testing.T, open func(t *testing.T) (tun.Device, Host)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, d tun.Device, h Host)
	}{
		{"describes itself", testDescription},
		{"reads what the host sends", testRead},
		{"reads superpackets", testReadSuper},
		{"keeps a batch until the next read", testBatch},
		{"writes what the host receives", testWrite},
		{"writes superpackets", testWriteSuper},
		{"writes on after a bad packet", testWriteBad},
		{"writes concurrently", testConcurrent},
		{"closes under a reader", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, h := open(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.run(t, d, h)
		})
	}
}

func testDescription(t *testing.T, d tun.Device, _ Host) {
	if d.Name() == "" {
		t.Error("no name")
	}
	if d.MTU() < tun.MinMTU || d.MTU() > tun.MaxMTU {
		t.Errorf("MTU %d", d.MTU())
	}
	if d.BatchSize() < 1 {
		t.Errorf("batch size %d", d.BatchSize())
	}
	if o := d.Offload(); (o.TSO || o.USO) && !o.VNetHdr {
		t.Errorf("offloads %+v: superpackets without virtio header", o)
	}
	if n, err := d.Read(nil); n != 0 || err != nil {
		t.Errorf("read of no packets: %d, %v", n, err)
	}
	if err := d.Write(nil); err != nil {
		t.Errorf("write of no packets: %v", err)
	}
}

// reader reads from a device what the suite itself sent and skips what a kernel
// says unasked.
type reader struct {
	t     *testing.T
	d     tun.Device
	batch []tun.Packet
	n, i  int
}

func newReader(t *testing.T, d tun.Device) *reader {
	return &reader{t: t, d: d, batch: make([]tun.Packet, d.BatchSize())}
}

func (r *reader) next() tun.Packet {
	r.t.Helper()
	for {
		for r.i < r.n {
			p := r.batch[r.i]
			r.i++
			if len(p.Data) >= 40 && netip.AddrFrom16([16]byte(p.Data[24:40])) == far {
				return p
			}
		}
		n, err := r.d.Read(r.batch)
		if err != nil || n < 1 || n > len(r.batch) {
			r.t.Fatalf("read: %d packets, %v", n, err)
		}
		r.n, r.i = n, 0
	}
}

func (r *reader) want(want [][]byte) {
	r.t.Helper()
	for i := 0; i < len(want); {
		for _, got := range Normalize(r.next()) {
			if i == len(want) || !bytes.Equal(got, want[i]) {
				r.t.Fatalf("read: packet %d of %d differs:\n got %x\nwant %x", i, len(want), got, want[min(i, len(want)-1)])
			}
			i++
		}
	}
}

func receive(t *testing.T, h Host, want [][]byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := 0; i < len(want); {
		p, err := h.Receive(ctx)
		if err != nil {
			t.Fatalf("receive: packet %d of %d: %v", i, len(want), err)
		}
		for _, got := range Normalize(p) {
			if i == len(want) || !bytes.Equal(got, want[i]) {
				t.Fatalf("receive: packet %d of %d differs:\n got %x\nwant %x", i, len(want), got, want[min(i, len(want)-1)])
			}
			i++
		}
	}
}

func payload(n, salt int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + salt + i>>8)
	}
	return b
}

// traffic is one packet of each sort that fits the MTU, from one side to the
// other.
func traffic(mtu int, src, dst netip.Addr) []Segment {
	a, b := netip.AddrPortFrom(src, 40001), netip.AddrPortFrom(dst, 8080)
	ts := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	return []Segment{
		{Src: a, Dst: b, Proto: UDP, HopLimit: 64, Payload: payload(1, 1)},
		{Src: a, Dst: b, Proto: UDP, HopLimit: 64, Class: 0xb9, Label: 0x12345, Payload: payload(333, 2)},
		{Src: a, Dst: b, Proto: UDP, HopLimit: 1, Payload: payload(mtu-48, 3)},
		{Src: a, Dst: b, Proto: TCP, HopLimit: 64, Flags: SYN, Window: 65535, Options: []byte{2, 4, 5, 0}},
		{Src: a, Dst: b, Proto: TCP, HopLimit: 64, Flags: ACK, Seq: 1, Window: 100, Options: ts, Payload: payload(mtu-72, 4)},
		{Src: a, Dst: b, Proto: TCP, HopLimit: 64, Flags: ACK | PSH | FIN, Seq: 99, Options: ts, Payload: payload(5, 5)},
		{Src: a, Dst: b, Proto: ICMPv6, HopLimit: 64, Payload: append([]byte{128, 0, 0, 0, 0, 9, 0, 1}, payload(56, 6)...)},
	}
}

// supers is a set of superpackets whose segments fill the MTU, with their sizes.
func supers(mtu int, src, dst netip.Addr) []tun.Packet {
	a, b := netip.AddrPortFrom(src, 40002), netip.AddrPortFrom(dst, 8081)
	ts := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	tcp := Segment{Src: a, Dst: b, Proto: TCP, HopLimit: 64, Flags: ACK | PSH, Seq: 1<<32 - 5000, Options: ts}
	udp := Segment{Src: a, Dst: b, Proto: UDP, HopLimit: 64}
	var out []tun.Packet
	for _, n := range []int{2*(mtu-72) + 1, 40 * (mtu - 72), 10*(mtu-72) - 1} {
		tcp.Payload = payload(n, n)
		out = append(out, tcp.Partial(mtu-72))
		tcp.Seq += uint32(n)
	}
	tcp.Flags |= CWR | FIN
	tcp.Payload = payload(3*(mtu-72), 7)
	out = append(out, tcp.Partial(mtu-72))
	for _, n := range []int{2*(mtu-48) + 1, 30*(mtu-48) - 1} {
		udp.Payload = payload(n, n)
		out = append(out, udp.Partial(mtu-48))
	}
	udp.Payload = payload(60*64, 8)
	return append(out, udp.Partial(64))
}

func testRead(t *testing.T, d tun.Device, h Host) {
	r := newReader(t, d)
	for _, s := range traffic(d.MTU(), near, far) {
		want := s.Complete()
		if err := h.Inject(tun.Packet{Data: want}); err != nil {
			t.Fatal(err)
		}
		r.want([][]byte{want})
	}
	if !d.Offload().VNetHdr {
		return
	}
	for _, s := range traffic(d.MTU(), near, far) {
		if s.Proto == ICMPv6 {
			continue
		}
		if err := h.Inject(s.Partial(0)); err != nil {
			t.Fatal(err)
		}
		r.want([][]byte{s.Complete()})
	}
}

func testReadSuper(t *testing.T, d tun.Device, h Host) {
	o := d.Offload()
	r := newReader(t, d)
	for _, s := range supers(d.MTU(), near, far) {
		if !o.TSO && s.Data[6] == TCP || !o.USO && s.Data[6] == UDP {
			continue // the host would cut it first, or refuse it
		}
		want := Normalize(s)
		if err := h.Inject(s); err != nil {
			t.Fatal(err)
		}
		got := r.next()
		if got.SegmentSize != s.SegmentSize || !got.Partial || got.Len() != s.Len() {
			t.Errorf("superpacket of %d octets by %d arrived as %d by %d, partial %v",
				s.Len(), s.SegmentSize, got.Len(), got.SegmentSize, got.Partial)
		}
		for i, seg := range Normalize(got) {
			if !bytes.Equal(seg, want[i]) {
				t.Fatalf("segment %d differs:\n got %x\nwant %x", i, seg, want[i])
			}
		}
	}
}

func testBatch(t *testing.T, d tun.Device, h Host) {
	const total = 100
	var want [][]byte
	for i := range total {
		s := Segment{
			Src: netip.AddrPortFrom(near, 1), Dst: netip.AddrPortFrom(far, 2), Proto: UDP, HopLimit: 64,
			Payload: payload(10+i*13%1200, i),
		}
		want = append(want, s.Complete())
		if err := h.Inject(tun.Packet{Data: want[i]}); err != nil {
			t.Fatal(err)
		}
	}
	batch := make([]tun.Packet, 7)
	for got := 0; got < total; {
		n, err := d.Read(batch)
		if err != nil {
			t.Fatal(err)
		}
		var mine []tun.Packet
		for _, p := range batch[:n] {
			if len(p.Data) >= 40 && netip.AddrFrom16([16]byte(p.Data[24:40])) == far {
				mine = append(mine, p)
			}
		}
		for i, p := range mine {
			if !bytes.Equal(p.Data, want[got+i]) {
				t.Fatalf("packet %d differs in a batch of %d", got+i, n)
			}
		}
		for i, p := range mine {
			// Use the room: the neighbours must not notice.
			if len(p.Buf) != tun.Headroom+len(p.Data)+tun.Tailroom || &p.Buf[tun.Headroom] != &p.Data[0] {
				t.Fatalf("packet of %d octets in a buffer of %d: no room around it", len(p.Data), len(p.Buf))
			}
			for j := range p.Buf[:tun.Headroom] {
				p.Buf[j] = 0xee
			}
			tail := p.Buf[tun.Headroom+len(p.Data):]
			for j := range tail {
				tail[j] = 0xee
			}
			if i+1 < len(mine) && !bytes.Equal(mine[i+1].Data, want[got+i+1]) {
				t.Fatalf("packet %d shares the room of packet %d", got+i+1, got+i)
			}
		}
		got += len(mine)
	}
}

func testWrite(t *testing.T, d tun.Device, h Host) {
	var packets []tun.Packet
	var want [][]byte
	for _, s := range traffic(d.MTU(), far, near) {
		packets = append(packets, tun.Packet{Data: s.Complete()})
		want = append(want, s.Complete())
		if s.Proto != ICMPv6 {
			packets = append(packets, s.Partial(0))
			want = append(want, s.Complete())
		}
	}
	if err := d.Write(packets); err != nil {
		t.Fatal(err)
	}
	receive(t, h, want)
}

func testWriteSuper(t *testing.T, d tun.Device, h Host) {
	for _, s := range supers(d.MTU(), far, near) {
		want := Normalize(s)
		if err := d.Write([]tun.Packet{s}); err != nil {
			t.Fatalf("%d octets: %v", s.Len(), err)
		}
		receive(t, h, want)
		// The same with its payload in pieces.
		s = scatter(want, s)
		if err := d.Write([]tun.Packet{s}); err != nil {
			t.Fatalf("%d octets in %d pieces: %v", s.Len(), 1+len(s.Tail), err)
		}
		receive(t, h, want)
	}
}

// scatter builds the superpacket p anew from its segments.
func scatter(segments [][]byte, p tun.Packet) tun.Packet {
	q := tun.Packet{SegmentSize: p.SegmentSize, Partial: true}
	first, _ := parse(segments[0])
	hl := len(segments[0]) - len(first.Payload)
	whole, ok := parse(bytes.Clone(p.Data))
	if !ok {
		// The superpacket was spoilt by the device; its segments know all.
		panic("tuntest: superpacket does not parse")
	}
	last, _ := parse(segments[len(segments)-1])
	whole.Flags = first.Flags | last.Flags
	whole.Seq, whole.Payload = first.Seq, nil
	for _, s := range segments {
		whole.Payload = append(whole.Payload, s[hl:]...)
	}
	b := whole.Partial(0).Data
	q.Data = b[:len(segments[0])]
	for b = b[len(q.Data):]; len(b) > 0; b = b[min(len(b), p.SegmentSize):] {
		q.Tail = append(q.Tail, bytes.Clone(b[:min(len(b), p.SegmentSize)]))
	}
	return q
}

func testWriteBad(t *testing.T, d tun.Device, h Host) {
	good := traffic(d.MTU(), far, near)[1]
	icmp := traffic(d.MTU(), far, near)[6].Complete()
	bad := []tun.Packet{
		{},
		{Data: icmp, Partial: true},
		{Data: icmp, SegmentSize: 10, Partial: true},
	}
	for i, b := range bad {
		err := d.Write([]tun.Packet{b, {Data: good.Complete()}})
		if err == nil {
			t.Errorf("bad packet %d: no error", i)
		}
		receive(t, h, [][]byte{good.Complete()})
	}
}

func testConcurrent(t *testing.T, d tun.Device, h Host) {
	const writers, each = 4, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				s := Segment{
					Src: netip.AddrPortFrom(far, uint16(w)), Dst: netip.AddrPortFrom(near, uint16(i)),
					Proto: UDP, HopLimit: 64, Payload: payload(100+w, i),
				}
				if err := d.Write([]tun.Packet{s.Partial(0)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var next [writers]int
	for range writers * each {
		p, err := h.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := parse(Normalize(p)[0])
		w := int(s.Src.Port())
		if int(s.Dst.Port()) != next[w] || !bytes.Equal(s.Payload, payload(100+w, next[w])) {
			t.Fatalf("writer %d: packet %d came instead of %d", w, s.Dst.Port(), next[w])
		}
		next[w]++
	}
}

func testClose(t *testing.T, d tun.Device, h Host) {
	result := make(chan error, 1)
	r := newReader(t, d)
	s := traffic(d.MTU(), near, far)[0]
	if err := h.Inject(tun.Packet{Data: s.Complete()}); err != nil {
		t.Fatal(err)
	}
	r.next() // the reader below has most likely to wait
	go func() {
		for {
			if _, err := d.Read(r.batch); err != nil {
				result <- err
				return
			}
		}
	}()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read under way: %v, want os.ErrClosed", err)
	}
	if _, err := d.Read(r.batch); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v, want os.ErrClosed", err)
	}
	if err := d.Write([]tun.Packet{{Data: s.Complete()}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after close: %v, want os.ErrClosed", err)
	}
	if err := d.Close(); err != nil {
		t.Error(fmt.Errorf("second close: %w", err))
	}
}
