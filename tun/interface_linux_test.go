package tun_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

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
		{"no capability", dropNetAdmin, tun.ErrPermission, "as root"},
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
