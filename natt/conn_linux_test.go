package natt

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func listenTest(t testing.TB, c ListenConfig) *linuxConn {
	t.Helper()
	conn, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*linuxConn)
}

func at(ip netip.Addr, c PacketConn) netip.AddrPort {
	return netip.AddrPortFrom(ip, c.LocalAddr().Port())
}

func buffers(n int) []Message {
	m := make([]Message, n)
	for i := range m {
		m[i].Buf = make([]byte, MaxRun)
	}
	return m
}

// TestRunStaysWhole shows that the offloads are in use: what leaves as a run arrives as a run.
func TestRunStaysWhole(t *testing.T) {
	t.Parallel()
	a, b := listenTest(t, ListenConfig{}), listenTest(t, ListenConfig{})
	if !a.Offload().GSO || !b.Offload().GRO || !b.Offload().Batch {
		t.Skipf("this kernel offers %+v", b.Offload())
	}
	const size, count = 1400, 40
	if _, err := a.WriteBatch([]Message{{Buf: make([]byte, size*count+5), Segment: size, Addr: at(loopback, b)}}); err != nil {
		t.Fatal(err)
	}
	m := buffers(4)
	n, err := b.ReadBatch(m)
	if n != 1 || err != nil || m[0].N != size*count+5 || m[0].Segment != size {
		t.Fatalf("%d messages of %d bytes in segments of %d, %v", n, m[0].N, m[0].Segment, err)
	}
}

func TestPacketInfo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ bind, client, asked string }{
		{"[::]:0", "127.0.0.1", "127.7.7.7"},
		{"0.0.0.0:0", "127.0.0.1", "127.7.7.7"},
		{"[::]:0", "::1", "::1"},
	} {
		t.Run(test.bind+" "+test.asked, func(t *testing.T) {
			server := listenTest(t, ListenConfig{Addr: netip.MustParseAddrPort(test.bind), PacketInfo: true})
			c, err := Listen(ListenConfig{Addr: netip.AddrPortFrom(netip.MustParseAddr(test.client), 0)})
			if err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { c.Close() })
			asked := netip.MustParseAddr(test.asked)
			// A run, so that both control messages are there at once.
			if _, err := c.WriteBatch([]Message{{Buf: make([]byte, 100), Segment: 40, Addr: at(asked, server)}}); err != nil {
				t.Fatal(err)
			}
			m := buffers(1)
			if _, err := server.ReadBatch(m); err != nil || m[0].Local != asked || m[0].Segment != 40 && server.offload.GRO {
				t.Fatalf("came to %v in segments of %d, want %v and 40: %v", m[0].Local, m[0].Segment, asked, err)
			}
			if _, err := server.WriteBatch([]Message{{Buf: make([]byte, 100), Segment: 40, Addr: m[0].Addr, Local: m[0].Local}}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadBatch(m); err != nil || m[0].Addr != at(asked, server) {
				t.Fatalf("answer from %v, want %v: %v", m[0].Addr, at(asked, server), err)
			}
		})
	}
}

// TestRefusedRun makes the kernel refuse UDP_SEGMENT; the datagrams arrive all the same.
func TestRefusedRun(t *testing.T) {
	t.Parallel()
	a, b := listenTest(t, ListenConfig{}), listenTest(t, ListenConfig{NoGRO: true})
	if !a.Offload().GSO {
		t.Skip("no UDP_SEGMENT")
	}
	err := a.rc.Control(func(fd uintptr) { // the kernel then answers EINVAL to runs
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	to := at(loopback, b)
	n, err := a.WriteBatch([]Message{{Buf: make([]byte, 8), Addr: to}, {Buf: make([]byte, 2500), Segment: 1000, Addr: to}, {Buf: make([]byte, 9), Addr: to}})
	if n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	var sizes []int
	for m := buffers(8); len(sizes) < 5; {
		n, err := b.ReadBatch(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range m[:n] {
			sizes = append(sizes, m.N)
		}
	}
	if want := []int{8, 1000, 1000, 500, 9}; !slices.Equal(sizes, want) {
		t.Fatalf("datagrams of %v bytes, want %v", sizes, want)
	}
}

func TestRefuseSegments(t *testing.T) {
	t.Parallel()
	c := listenTest(t, ListenConfig{})
	if !c.Offload().GSO {
		t.Skip("no UDP_SEGMENT")
	}
	ip := netip.MustParseAddr("192.0.2.1")
	c.refuseSegments(ip)
	c.refuseSegments(ip.Next())
	if c.segments(ip) || c.segments(ip.Next()) || !c.segments(loopback) {
		t.Fatal("the refusal is not remembered for its address alone")
	}
	for range maxNoSegment {
		ip = ip.Next()
		c.refuseSegments(ip)
	}
	if c.segments(loopback) || c.Offload().GSO {
		t.Fatal("the memory of refusals has no end")
	}
}

// inNamespace runs f in a network namespace of its own that has a link of the given MTU with 192.0.2.1/24, and on it
// 192.0.2.2, which swallows everything.
func inNamespace(t *testing.T, mtu int, f func(link netlink.Link)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	missing := make(chan error, 1)
	go func() {
		defer close(missing)
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with it
		ns, err := netns.New()
		if err != nil {
			missing <- err
			return
		}
		defer ns.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "lan", mtu
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: "far"}
		if err := netlink.LinkAdd(link); err != nil {
			missing <- err
			return
		}
		far, err := netlink.LinkByName("far")
		if err != nil {
			missing <- err
			return
		}
		if err := errors.Join(
			netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}),
			netlink.LinkSetUp(link), netlink.LinkSetUp(far),
			// Without it the first datagrams wait for an answer to ARP.
			netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Index, IP: net.IPv4(192, 0, 2, 2), State: netlink.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}),
		); err != nil {
			missing <- err
			return
		}
		f(link)
	}()
	if err := <-missing; err != nil {
		t.Skip("no namespace with a link: ", err)
	}
}

// TestLinkMTU shows what datagrams and runs that the link does not take come to, and that an unreachable
// destination harms nobody else.
func TestLinkMTU(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]ListenConfig{"offload": {DontFragment: true}, "plain": {DontFragment: true, NoGSO: true, NoBatch: true}} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, 1300, func(netlink.Link) {
				c := listenTest(t, config)
				peer := netip.MustParseAddrPort("192.0.2.2:9")
				m := []Message{
					{Buf: make([]byte, 1272), Addr: peer},                                            // just fits
					{Buf: make([]byte, 1273), Addr: peer},                                            // 1
					{Buf: make([]byte, 9), Addr: netip.MustParseAddrPort("198.51.100.1:9")},          // 2: no route
					{Buf: make([]byte, 12720), Segment: 1272, Addr: peer},                            // just fits
					{Buf: make([]byte, 12730), Segment: 1273, Addr: peer},                            // 4
					{Buf: make([]byte, 100000), Segment: 1272, Addr: peer},                           // more than one run
					{Buf: make([]byte, 9), Addr: netip.MustParseAddrPort("[2001:db8::1]:9")},         // 6: no route
					{Buf: make([]byte, 9), Segment: 4, Addr: netip.MustParseAddrPort("192.0.2.2:9")}, // runs of next to nothing
				}
				n, err := c.WriteBatch(m)
				var failed *WriteError
				if n != 1 || !errors.As(err, &failed) || !errors.Is(err, syscall.EMSGSIZE) || !slices.Equal(failed.Failed, []int{1, 2, 4, 6}) {
					t.Errorf("WriteBatch: %d, %v, %+v", n, err, failed)
				}
				if n, err := c.WriteBatch(m[4:5]); n != 0 || !errors.Is(err, syscall.EMSGSIZE) {
					t.Errorf("WriteBatch of a run: %d, %v", n, err)
				}
				if n, err := c.WriteBatch(m[2:3]); n != 0 || !errors.Is(err, syscall.ENETUNREACH) {
					t.Errorf("WriteBatch without a route: %d, %v", n, err)
				}
				if c.Offload().GSO != !config.NoGSO || !c.segments(peer.Addr()) && !config.NoGSO {
					t.Error("UDP_SEGMENT given up")
				}
			})
		})
	}
}

// TestFullSendBuffer makes a writer wait for a slow link.
func TestFullSendBuffer(t *testing.T) {
	t.Parallel()
	inNamespace(t, 1500, func(link netlink.Link) {
		qdisc := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       4 << 20, Limit: 1 << 20, Buffer: 100000,
		}
		if err := netlink.QdiscAdd(qdisc); err != nil {
			t.Log("not tested, no token bucket filter: ", err)
			return
		}
		c := listenTest(t, ListenConfig{NoGSO: true, ReceiveBuffer: 16 << 10})
		const size, count = 1000, 400
		start := time.Now()
		n, err := c.WriteBatch([]Message{{Buf: make([]byte, size*count), Segment: size, Addr: netip.MustParseAddrPort("192.0.2.2:9")}})
		if n != 1 || err != nil {
			t.Errorf("WriteBatch: %d, %v", n, err)
		}
		if took := time.Since(start); took < 20*time.Millisecond {
			t.Errorf("%d bytes through 4 MiB/s in %v: the writer did not wait", size*count, took)
		}
		stats, err := netlink.LinkByName("lan")
		if err != nil || stats.Attrs().Statistics.TxPackets < count-20 { // some still wait in the filter
			t.Errorf("sent %+v, %v", stats.Attrs().Statistics, err)
		}
	})
}

func TestDevice(t *testing.T) {
	t.Parallel()
	if _, err := Listen(ListenConfig{Device: "no-such-link"}); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("Listen on a device that is not there: %v", err)
	}
	c, err := Listen(ListenConfig{Device: "lo"})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	c := listenTest(t, ListenConfig{})
	if _, err := Listen(ListenConfig{Addr: c.LocalAddr()}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second socket on %v: %v", c.LocalAddr(), err)
	}
}

// TestAllocBatch asserts that neither direction allocates once it is warm.
func TestAllocBatch(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, config := range []ListenConfig{{PacketInfo: true}, {NoBatch: true, NoGSO: true, NoGRO: true}} {
		a, b := listenTest(t, config), listenTest(t, config)
		out := []Message{
			{Buf: make([]byte, 14000), Segment: 1400, Addr: at(loopback, b)},
			{Buf: make([]byte, 100), Addr: at(loopback, b)},
		}
		in := buffers(b.BatchSize())
		if n := testing.AllocsPerRun(200, func() {
			if _, err := a.WriteBatch(out); err != nil {
				t.Error(err)
			}
			for got := 0; got < 14100; {
				n, err := b.ReadBatch(in)
				if err != nil {
					t.Error(err)
				}
				for i := range in[:n] {
					got += in[i].N
				}
			}
		}); n != 0 {
			t.Errorf("%+v: %v allocations a batch", config, n)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, bench := range []struct {
		name          string
		config        ListenConfig
		size, segment int
		batch         int
	}{
		{"run of 45x1400", ListenConfig{}, 45 * 1400, 1400, 1},
		{"run of 45x1400, no GSO or GRO", ListenConfig{NoGSO: true, NoGRO: true}, 45 * 1400, 1400, 1},
		{"run of 45x1400, no offload", ListenConfig{NoGSO: true, NoGRO: true, NoBatch: true}, 45 * 1400, 1400, 1},
		{"single of 64", ListenConfig{}, 64, 0, 1},
		{"32 singles of 64", ListenConfig{}, 64, 0, 32},
		{"32 singles of 64, no offload", ListenConfig{NoGSO: true, NoGRO: true, NoBatch: true}, 64, 0, 32},
	} {
		b.Run(bench.name, func(b *testing.B) {
			w, r := listenTest(b, bench.config), listenTest(b, bench.config)
			var out []Message
			for range bench.batch {
				out = append(out, Message{Buf: make([]byte, bench.size), Segment: bench.segment, Addr: at(loopback, r)})
			}
			in := buffers(r.BatchSize())
			b.ReportAllocs()
			b.SetBytes(int64(bench.size * bench.batch))
			for b.Loop() {
				if _, err := w.WriteBatch(out); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < bench.size*bench.batch; {
					n, err := r.ReadBatch(in)
					if err != nil {
						b.Fatal(err)
					}
					for i := range in[:n] {
						got += in[i].N
					}
				}
			}
		})
	}
}

// TestOtherFamily sends to an IPv6 address from a socket that has IPv4 only.
func TestOtherFamily(t *testing.T) {
	t.Parallel()
	c := listenTest(t, ListenConfig{Addr: netip.AddrPortFrom(loopback, 0)})
	m := []Message{{Buf: []byte("x"), Addr: netip.MustParseAddrPort("[::1]:9")}, {Buf: []byte("x"), Addr: at(loopback, c)}}
	if n, err := c.WriteBatch(m); n != 0 || !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("WriteBatch: %d, %v", n, err)
	}
	if n, err := c.ReadBatch(buffers(1)); n != 1 || err != nil {
		t.Errorf("ReadBatch: %d, %v", n, err)
	}
}
