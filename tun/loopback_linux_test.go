package tun_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pilotnet/pilot/tun"
)

// TestOwnAddress: programs reach the address of their own machine also where every
// interface started without IPv6, the loopback device among them.
func TestOwnAddress(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ns := newNamespace(t)
	ns.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0),
			netlink.LinkSetUp(lo),
		)
	})
	ns.open(t, config(alice, tun.Offload{}))
	ns.do(t, func() error {
		l, err := net.ListenTCP("tcp6", net.TCPAddrFromAddrPort(netip.AddrPortFrom(alice, 0)))
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.DialTimeout("tcp6", l.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}
