package portmap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// elsewhere4 and elsewhere6 are the addresses of a root name server: as far away as an address can be. The kernel is
// asked for the way to them; nothing is sent there.
var (
	elsewhere4 = netip.MustParseAddr("198.41.0.4")
	elsewhere6 = netip.MustParseAddr("2001:503:ba3e::2:30")
)

// DefaultGateway returns the IPv4 gateway to the Internet and our address towards it.
func DefaultGateway() (gateway, self netip.Addr, err error) { return route(elsewhere4) }

// DefaultGateway6 is the same for IPv6. A link-local gateway has a zone.
func DefaultGateway6() (gateway, self netip.Addr, err error) { return route(elsewhere6) }

func route(to netip.Addr) (gateway, self netip.Addr, err error) {
	routes, err := netlink.RouteGet(net.IP(to.AsSlice()))
	if err != nil {
		return gateway, self, fmt.Errorf("portmap: no route to the Internet: %w", err)
	}
	for _, r := range routes {
		gateway, _ := netip.AddrFromSlice(r.Gw)
		self, _ := netip.AddrFromSlice(r.Src)
		gateway, self = gateway.Unmap(), self.Unmap()
		if !gateway.IsValid() || !self.IsValid() {
			continue
		}
		if gateway.IsLinkLocalUnicast() && gateway.Is6() {
			link, err := net.InterfaceByIndex(r.LinkIndex)
			if err != nil {
				continue // it went away while we looked
			}
			gateway = gateway.WithZone(link.Name)
		}
		return gateway, self, nil
	}
	return gateway, self, errors.New("portmap: the way to the Internet has no gateway")
}
