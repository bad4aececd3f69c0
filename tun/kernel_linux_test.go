package tun_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

// A pump carries packets from one device to another as a tunnel would: it cuts
// superpackets into frames of at most limit octets, keeps no byte of the read
// buffer, and merges what it read together.
type pump struct {
	limit  int
	merge  tun.Offload // what may be merged
	supers atomic.Int64
	joined atomic.Int64
}

func (p *pump) run(from, to tun.Device) error {
	batch := make([]tun.Packet, from.BatchSize())
	frames := make([]byte, 0, 1<<20)
	merger := tun.NewMerger(p.merge)
	var c tun.Cutter
	for {
		n, err := from.Read(batch)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		frames = frames[:0]
		for _, pkt := range batch[:n] {
			if pkt.SegmentSize > 0 {
				p.supers.Add(1)
			}
			if err := c.Reset(pkt, p.limit); err != nil {
				return err
			}
			for seg := c.Next(); seg != nil; seg = c.Next() {
				at := len(frames)
				frames = append(frames, seg...)
				if err := merger.Add(frames[at:len(frames):len(frames)], c.Partial()); err != nil {
					return err
				}
			}
		}
		out := merger.Flush()
		for _, q := range out {
			if q.SegmentSize > 0 {
				p.joined.Add(1)
			}
		}
		if err := to.Write(out); err != nil && !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
}

// world is two hosts whose devices a pump joins.
type world struct{ a, b *namespace }

func newWorld(t testing.TB, p *pump, withoutA, withoutB tun.Offload) *world {
	t.Helper()
	w := &world{newNamespace(t), newNamespace(t)}
	da, db := w.a.open(t, config(alice, withoutA)), w.b.open(t, config(bob, withoutB))
	done := make(chan error, 2)
	go func() { done <- p.run(da, db) }()
	go func() { done <- p.run(db, da) }()
	t.Cleanup(func() {
		da.Close()
		db.Close()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("pump: %v", err)
			}
		}
	})
	return w
}

// carryTCP sends n octets by TCP from a to b and compares their SHA-256.
func (w *world) carryTCP(t *testing.T, n int64) {
	t.Helper()
	var l net.Listener
	w.b.do(t, func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(bob, 0).String())
		return err
	})
	defer l.Close()
	type result struct {
		sum []byte
		err error
	}
	received := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- result{err: err}
			return
		}
		defer c.Close()
		h := sha256.New()
		_, err = io.Copy(h, c)
		received <- result{h.Sum(nil), err}
	}()
	var c net.Conn
	w.a.do(t, func() (err error) {
		c, err = net.DialTimeout("tcp6", l.Addr().String(), 10*time.Second)
		return err
	})
	h := sha256.New()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(random, n)); err != nil {
		t.Error(err)
	}
	c.Close()
	r := <-received
	if r.err != nil || !bytes.Equal(r.sum, h.Sum(nil)) {
		t.Errorf("sent %x, received %x, %v", h.Sum(nil), r.sum, r.err)
	}
}

// carryUDP sends datagrams of all sizes from a to b, with and without UDP_SEGMENT,
// and has them sent back one by one.
func (w *world) carryUDP(t *testing.T) {
	t.Helper()
	var pa, pb net.PacketConn
	w.a.do(t, func() (err error) {
		pa, err = net.ListenPacket("udp6", netip.AddrPortFrom(alice, 0).String())
		return err
	})
	defer pa.Close()
	w.b.do(t, func() (err error) {
		pb, err = net.ListenPacket("udp6", netip.AddrPortFrom(bob, 0).String())
		return err
	})
	defer pb.Close()
	deadline := time.Now().Add(20 * time.Second)
	pa.SetDeadline(deadline)
	pb.SetDeadline(deadline)
	buf := make([]byte, 65536)
	expect := func(c net.PacketConn, want []byte, from net.Addr) {
		t.Helper()
		n, addr, err := c.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], want) || addr.String() != from.String() {
			t.Fatalf("%d octets from %v, %v; want %d from %v", n, addr, err, len(want), from)
		}
	}
	for _, n := range []int{0, 1, 64, 500, mtu - 48, mtu - 47, 5000, 60000} {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{2}).Read(b)
		if _, err := pa.WriteTo(b, pb.LocalAddr()); err != nil {
			t.Fatalf("%d octets: %v", n, err)
		}
		expect(pb, b, pa.LocalAddr())
		if _, err := pb.WriteTo(b, pa.LocalAddr()); err != nil {
			t.Fatalf("%d octets: %v", n, err)
		}
		expect(pa, b, pb.LocalAddr())
	}
	const size, count = 1000, 20
	b := make([]byte, size*count-1)
	rand.NewChaCha8([32]byte{3}).Read(b)
	oob := make([]byte, unix.CmsgSpace(2))
	putSegmentSize(oob, size)
	to := net.UDPAddrFromAddrPort(pb.LocalAddr().(*net.UDPAddr).AddrPort())
	if _, _, err := pa.(*net.UDPConn).WriteMsgUDP(b, oob, to); err != nil {
		t.Fatalf("UDP_SEGMENT: %v", err)
	}
	for len(b) > 0 {
		n := min(size, len(b))
		expect(pb, b[:n], pa.LocalAddr())
		b = b[n:]
	}
}

func TestKernelTraffic(t *testing.T) {
	needRoot(t)
	all := tun.Offload{VNetHdr: true, TSO: true, USO: true}
	for _, c := range []struct {
		name     string
		a, b     tun.Offload // left unused
		limit    int
		merge    tun.Offload
		supers   bool
		rejoined bool
	}{
		{"offloads", tun.Offload{}, tun.Offload{}, mtu, all, true, true},
		{"small budget", tun.Offload{}, tun.Offload{}, 1280, all, true, true},
		{"without merging", tun.Offload{}, tun.Offload{}, mtu, tun.Offload{}, true, false},
		{"to a plain device", tun.Offload{}, all, mtu, all, true, true},
		{"from a plain device", all, tun.Offload{}, mtu, all, false, false},
		{"plain", all, all, mtu, all, false, false},
		{"without USO", tun.Offload{USO: true}, tun.Offload{USO: true}, mtu, tun.Offload{VNetHdr: true, TSO: true}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &pump{limit: c.limit, merge: c.merge}
			w := newWorld(t, p, c.a, c.b)
			w.carryTCP(t, 8<<20)
			w.carryUDP(t)
			if s, j := p.supers.Load() > 0, p.joined.Load() > 0; s != c.supers || j != c.rejoined {
				t.Errorf("%d superpackets read, %d made", p.supers.Load(), p.joined.Load())
			}
		})
	}
}

func TestAllocKernel(t *testing.T) {
	skipUnderRace(t)
	needRoot(t)
	ns := newNamespace(t)
	d := ns.open(t, config(alice, tun.Offload{}))
	var h *packetHost
	ns.do(t, func() (err error) { h, err = newPacketHost(d.Name()); return err })
	t.Cleanup(func() { h.f.Close() })
	super := random(rand.New(rand.NewPCG(1, 1)), 6, 20000).Partial(1000)
	batch := make([]tun.Packet, d.BatchSize())
	out := []tun.Packet{random(rand.New(rand.NewPCG(1, 1)), 17, 500).Partial(0)}
	var packet [vnetLen]byte
	packet[0], packet[1] = 1, unix.VIRTIO_NET_HDR_GSO_TCPV6
	hl := len(super.Data) - 20000
	packet[2], packet[4], packet[5], packet[6], packet[8] = byte(hl), 1000&255, 1000>>8, 40, 16
	if super.Data[53]&0x80 != 0 {
		packet[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
	}
	raw := append(packet[:], super.Data...)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := h.f.Write(raw); err != nil {
			t.Fatal(err)
		}
		if n, err := d.Read(batch); err != nil || n != 1 || batch[0].SegmentSize != 1000 {
			t.Fatalf("read: %d, %v", n, err)
		}
		if err := d.Write(out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func putSegmentSize(oob []byte, size uint16) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(oob)))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	oob[unix.CmsgLen(0)], oob[unix.CmsgLen(0)+1] = byte(size), byte(size>>8)
}

// BenchmarkKernelTCP is one TCP stream through two devices, a Cutter and a
// Merger, all on this machine: what is left when nothing is encrypted or sent.
func BenchmarkKernelTCP(b *testing.B) {
	needRoot(b)
	w := newWorld(b, &pump{limit: mtu, merge: offloads}, tun.Offload{}, tun.Offload{})
	var l net.Listener
	w.b.do(b, func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(bob, 0).String())
		return err
	})
	defer l.Close()
	done := make(chan error)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
			c.Close()
		}
		done <- err
	}()
	var c net.Conn
	w.a.do(b, func() (err error) {
		c, err = net.DialTimeout("tcp6", l.Addr().String(), 10*time.Second)
		return err
	})
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
