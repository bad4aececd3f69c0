package tun_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
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

func newWorld(t *testing.T, p *pump, withoutA, withoutB tun.Offload) *world {
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

func TestKernelInterface(t *testing.T) {
	needRoot(t)
	ns := newNamespace(t)
	// As in a container that starts every interface without IPv6.
	ns.do(t, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0),
		)
	})
	var logged strings.Builder
	c := config(alice, tun.Offload{})
	c.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := ns.open(t, c)
	if logged.Len() > 0 {
		t.Errorf("settings refused: %s", logged.String())
	}
	if d.Name() != "pilot0" || d.MTU() != mtu {
		t.Errorf("%s with MTU %d", d.Name(), d.MTU())
	}
	ns.do(t, func() error {
		link, err := netlink.LinkByName("pilot0")
		if err != nil {
			return err
		}
		a := link.Attrs()
		if a.MTU != mtu || a.Flags&net.FlagUp == 0 || a.Flags&net.FlagMulticast != 0 {
			t.Errorf("interface: MTU %d, flags %v", a.MTU, a.Flags)
		}
		if a.GSOMaxSize < 50000 || a.GSOMaxSize > 62000 {
			t.Errorf("gso_max_size %d", a.GSOMaxSize)
		}
		if tuntap, ok := link.(*netlink.Tuntap); ok && !tuntap.NonPersist {
			t.Error("the interface is persistent")
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		if len(addrs) != 1 || addrs[0].IPNet.String() != alice.String()+"/128" || addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("addresses: %v", addrs)
		}
		routes, err := netlink.RouteGet(bob.AsSlice())
		if err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].LinkIndex != a.Index || routes[0].Src.String() != alice.String() {
			t.Errorf("route: %v", routes)
		}
		return nil
	})
	// Nothing is sent that nobody asked for.
	noise := make(chan tun.Packet, 100)
	go func() {
		defer close(noise)
		batch := make([]tun.Packet, d.BatchSize())
		for {
			n, err := d.Read(batch)
			if err != nil {
				return
			}
			for _, p := range batch[:n] {
				noise <- tun.Packet{Data: bytes.Clone(p.Data)}
			}
		}
	}()
	ns.do(t, func() error {
		c, err := net.ListenPacket("udp6", netip.AddrPortFrom(alice, 0).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo([]byte("last"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(bob, 9)))
		return err
	})
	for p := range noise {
		if bytes.HasSuffix(p.Data, []byte("last")) {
			break
		}
		t.Errorf("unasked packet %x", p.Data)
	}
	d.Close()
	for range noise {
	}
	ns.do(t, func() error {
		if _, err := netlink.LinkByName("pilot0"); err == nil {
			t.Error("the interface is there after Close")
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		for _, r := range routes {
			if r.Dst != nil && r.Dst.String() == prefix.String() {
				t.Errorf("route left: %v", r)
			}
		}
		return err
	})
}

func TestKernelReopen(t *testing.T) {
	needRoot(t)
	ns := newNamespace(t)
	for range 20 {
		ns.open(t, config(alice, tun.Offload{})).Close()
	}
}

// TestKernelKilled kills a process that holds a device: nothing may remain.
func TestKernelKilled(t *testing.T) {
	if os.Getenv("PILOT_TEST_HOLD_DEVICE") == "1" {
		if _, err := tun.Open(config(alice, tun.Offload{})); err != nil {
			t.Fatal(err)
		}
		fmt.Println("device is open")
		select {}
	}
	needRoot(t)
	ns := newNamespace(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKernelKilled$")
	cmd.Env = append(os.Environ(), "PILOT_TEST_HOLD_DEVICE=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.do(t, cmd.Start) // the child stays in the thread's namespace
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "open") {
		t.Errorf("child says %q, %v", line, err)
	}
	ns.do(t, func() error { _, err := netlink.LinkByName("pilot0"); return err })
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	ns.do(t, func() error {
		links, err := netlink.LinkList()
		if len(links) != 1 {
			t.Errorf("%d interfaces left, want lo alone", len(links))
		}
		routes, _ := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			t.Errorf("route left: %v", r)
		}
		return err
	})
}

func TestKernelInterfaceRemoved(t *testing.T) {
	needRoot(t)
	ns := newNamespace(t)
	d := ns.open(t, config(alice, tun.Offload{}))
	result := make(chan error)
	go func() {
		batch := make([]tun.Packet, 1)
		for {
			if _, err := d.Read(batch); err != nil {
				result <- err
				return
			}
		}
	}()
	ns.do(t, func() error {
		link, err := netlink.LinkByName("pilot0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err := <-result; err == nil || errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("read: %v", err)
	}
	if err := d.Write([]tun.Packet{{Data: []byte{0x60}}}); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

// alone runs f on a thread with a network and mount namespace of its own, which
// ends with it, so that f may break whatever it likes.
func alone(t *testing.T, f func() error) {
	t.Helper()
	err := inNamespace(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare mounts: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dropNetAdmin takes CAP_NET_ADMIN from the calling thread.
func dropNetAdmin() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	d[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	d[0].Permitted &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&h, &d[0])
}

func TestKernelErrors(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name  string
		setup func() error
		want  error
		text  string
	}{
		{"no capability", dropNetAdmin, tun.ErrPermission, "run as root"},
		{"no driver", func() error { return unix.Mount("tmpfs", "/dev", "tmpfs", 0, "") }, tun.ErrNoDevice, "--device /dev/net/tun"},
		{"device not for us", func() error {
			if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
				return err
			}
			// A file system that allows no devices: the node is there, opening fails.
			if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
				return err
			}
			return unix.Mount("", "/dev/net", "", unix.MS_REMOUNT|unix.MS_NODEV, "")
		}, tun.ErrPermission, "--device /dev/net/tun"},
		{"IPv6 off", func() error {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
				return err
			}
			if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
				return err
			}
			return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}, tun.ErrIPv6Disabled, "--sysctl net.ipv6.conf.all.disable_ipv6=0"},
		{"IPv6 off, no proc", func() error {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
				return err
			}
			return unix.Mount("tmpfs", "/proc/sys", "tmpfs", 0, "")
		}, tun.ErrIPv6Disabled, "sysctl -w net.ipv6.conf.all.disable_ipv6=0"},
		{"IPv6 not built in", func() error {
			if err := unix.Mount("tmpfs", "/proc/sys", "tmpfs", 0, ""); err != nil {
				return err
			}
			return os.MkdirAll("/proc/sys/net/ipv4", 0o755)
		}, tun.ErrIPv6Disabled, "ipv6.disable=1"},
		{"name of another sort", func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pilot0"}, PeerName: "pilot1"})
		}, tun.ErrNameTaken, "choose another name"},
		{"route taken", func() error {
			c := config(bob, tun.Offload{})
			c.Name = "other0"
			d, err := tun.Open(c)
			if err != nil {
				return err
			}
			t.Cleanup(func() { d.Close() })
			return nil
		}, tun.ErrRouteTaken, "other0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			alone(t, func() error {
				if err := c.setup(); err != nil {
					return err
				}
				d, err := tun.Open(config(alice, tun.Offload{}))
				if err == nil {
					d.Close()
				}
				if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
					t.Errorf("%v\nwant %v with %q", err, c.want, c.text)
				}
				if d != nil && err != nil {
					t.Error("a device and an error")
				}
				return nil
			})
		})
	}
	ns := newNamespace(t)
	ns.open(t, config(alice, tun.Offload{}))
	ns.do(t, func() error {
		if _, err := tun.Open(config(bob, tun.Offload{})); !errors.Is(err, tun.ErrNameTaken) {
			t.Errorf("%v, want ErrNameTaken", err)
		}
		return nil
	})
}

func TestOpenChecksConfig(t *testing.T) {
	for name, change := range map[string]func(*tun.Config){
		"no address":   func(c *tun.Config) { c.Address = netip.Prefix{} },
		"IPv4 address": func(c *tun.Config) { c.Address = netip.MustParsePrefix("10.0.0.1/32") },
		"wide address": func(c *tun.Config) { c.Address = netip.PrefixFrom(alice, 48) },
		"no route":     func(c *tun.Config) { c.Route = netip.Prefix{} },
		"host bits":    func(c *tun.Config) { c.Route = netip.PrefixFrom(alice, 48) },
		"small MTU":    func(c *tun.Config) { c.MTU = 1279 },
		"large MTU":    func(c *tun.Config) { c.MTU = 65536 },
	} {
		c := config(alice, tun.Offload{})
		change(&c)
		if d, err := tun.Open(c); err == nil {
			d.Close()
			t.Errorf("%s: no error", name)
		}
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
