package tun_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

// through names the interface that leads to the probe address, as Chromium finds
// out: by connecting a socket. "" is none.
func (n *namespace) through(t *testing.T) (name string) {
	t.Helper()
	n.do(t, func() error {
		c, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(tun.WellKnownProbe(), 53)))
		if err != nil { // of which there are several, as to how far the kernel came
			return nil
		}
		c.Close()
		routes, err := netlink.RouteGet(tun.WellKnownProbe().AsSlice())
		if err != nil {
			return err
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		name = link.Attrs().Name
		return nil
	})
	return name
}

// uplink gives the namespace IPv6 to the Internet, as far as routes can tell, or
// takes it away.
func (n *namespace) uplink(t *testing.T, on bool) {
	t.Helper()
	n.do(t, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}
		if !on {
			return netlink.LinkDel(pair)
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("2001:db8::1/64")
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		other, err := netlink.LinkByName("up1")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(pair, addr), netlink.LinkSetUp(pair), netlink.LinkSetUp(other),
			netlink.RouteAdd(&netlink.Route{LinkIndex: pair.Index, Gw: net.ParseIP("2001:db8::2")}))
	})
}

func TestKernelProbeRoute(t *testing.T) {
	needRoot(t)
	ns := newNamespace(t)
	c := config(alice, tun.Offload{})
	c.IPv6Probe = tun.WellKnownProbe()
	d := ns.open(t, c)
	expect := func(want string) {
		t.Helper()
		if got := ns.through(t); got != want {
			t.Errorf("the probe goes through %q, want %q", got, want)
		}
	}
	reroute := func() {
		t.Helper()
		for range 2 { // twice is as once
			if err := d.(tun.Rerouter).Reroute(); err != nil {
				t.Error(err)
			}
		}
	}
	expect("pilot0")
	reroute()
	expect("pilot0")
	ns.uplink(t, true)
	expect("pilot0")
	reroute()
	expect("up0")
	ns.uplink(t, false)
	reroute()
	expect("pilot0")
	d.Close()
	expect("")
	reroute() // after Close: nothing

	ns.uplink(t, true)
	d = ns.open(t, c)
	expect("up0")
	d.Close()
	expect("up0")
	ns.uplink(t, false)

	d = ns.open(t, config(alice, tun.Offload{}))
	expect("")
	reroute()
	expect("")
}
