package overlay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/tun/userspace"
)

// newUserspaceWire is two agents whose devices are TCP/IP stacks, with both
// directions at work, over the kernel's sockets.
func newUserspaceWire(t *testing.T, host netip.Addr) (a, b *rig) {
	t.Helper()
	var all sync.WaitGroup
	rigOn := func(node uint32) *rig {
		device, err := userspace.New(ipam.Addr{Node: node}.ULA(), ipam.Prefix(), DefaultMTU)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := natt.Listen(natt.ListenConfig{Addr: netip.AddrPortFrom(host, 0)})
		if err != nil {
			t.Fatal(err)
		}
		r := newRig(node, device)
		r.plane.conn = conn
		r.in = newInbound(r.plane, conn, 0)
		return r
	}
	a, b = rigOn(1), rigOn(2)
	ab, ba := join(a, b)
	a.use(ab, natt.Path{Remote: b.conn.LocalAddr()}, natt.Path{}, 1500)
	b.use(ba, natt.Path{Remote: a.conn.LocalAddr()}, natt.Path{}, 1500)
	for _, r := range []*rig{a, b} {
		all.Go(func() {
			if err := r.in.run(); err != nil {
				t.Errorf("the reader ended with %v", err)
			}
		})
		all.Go(func() {
			if err := r.out.run(); err != nil {
				t.Errorf("the writer ended with %v", err)
			}
		})
	}
	t.Cleanup(func() {
		for _, r := range []*rig{a, b} {
			r.conn.Close()
			r.device.Close()
		}
		all.Wait()
	})
	return a, b
}

// testPathUserspace carries a stream both ways and datagrams of all sizes between
// two stacks, and compares what comes with what was sent.
func testPathUserspace(t *testing.T, host netip.Addr, size int64) {
	a, b := newUserspaceWire(t, host)
	near, far := a.device.(ownStack), b.device.(ownStack)
	l, err := far.Listen(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sums := make(chan [2][32]byte, 2)
	talk := func(c net.Conn, seed byte) {
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		var sums2 [2][32]byte
		var both sync.WaitGroup
		both.Go(func() {
			h := sha256.New()
			_, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(rand.NewChaCha8([32]byte{seed}), size))
			if err = errors.Join(err, c.(*userspace.Conn).CloseWrite()); err != nil {
				t.Error(err)
			}
			h.Sum(sums2[0][:0])
		})
		h := sha256.New()
		if n, err := io.Copy(h, c); err != nil || n != size {
			t.Errorf("%d of %d bytes, %v", n, size, err)
		}
		h.Sum(sums2[1][:0])
		both.Wait()
		sums <- sums2
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			talk(c, 1)
		} else {
			t.Error(err)
			sums <- [2][32]byte{}
		}
	}()
	c, err := near.DialContext(t.Context(), "tcp", ulaPort(2, 80))
	if err != nil {
		t.Fatal(err)
	}
	talk(c, 2)
	x, y := <-sums, <-sums
	if x[0] != y[1] || x[1] != y[0] {
		t.Error("what came is not what was sent")
	}
	testUserspaceDatagrams(t, near, far)
	if in, out := a.dropped(dropInAuth)+b.dropped(dropInAuth), a.dropped(dropOutVersion)+b.dropped(dropOutVersion); in+out != 0 {
		t.Errorf("drops: %v, %v", a.drops.counts(), b.drops.counts())
	}
}

func testUserspaceDatagrams(t *testing.T, near, far ownStack) {
	l, err := far.ListenPacket(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			l.WriteTo(buf[:n], from)
		}
	}()
	c, err := near.DialContext(t.Context(), "udp", ulaPort(2, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	got := make([]byte, 1<<16)
	for _, n := range []int{0, 1, 536, 1360, 1361, 4000} {
		want := bytes.Repeat([]byte{byte(n)}, n)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		if k, err := c.Read(got); err != nil || !bytes.Equal(got[:k], want) {
			t.Fatalf("%d of %d bytes, %v", k, n, err)
		}
	}
}
