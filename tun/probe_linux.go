package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A probeRoute leads to Config.IPv6Probe through the device as long as the host
// has no other way there.
type probeRoute struct {
	mu     sync.Mutex
	handle *netlink.Handle // of the device's network namespace; nil when closed
	route  netlink.Route
}

func newProbeRoute(name string, addr, own netip.Addr) (*probeRoute, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, netlinkError(name, "open a netlink socket", err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		h.Close()
		return nil, netlinkError(name, "find the interface", err)
	}
	return &probeRoute{handle: h, route: netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Src:       own.AsSlice(),
		Protocol:  unix.RTPROT_STATIC,
		Scope:     netlink.SCOPE_UNIVERSE,
	}}, nil
}

// update makes the route be there or not, as it should. Doing it twice changes
// nothing, so that it may be called for every change of a route, its own too.
func (p *probeRoute) update() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.handle == nil {
		return nil
	}
	placed, other, err := p.look()
	switch {
	case err != nil:
	case other && placed:
		err = p.handle.RouteDel(&p.route)
	case !other && !placed:
		err = p.handle.RouteAdd(&p.route)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("tun: route to %s: %w", p.route.Dst.IP, err)
	}
	return nil
}

// look says whether our route is there, and whether the host would have another.
func (p *probeRoute) look() (placed, other bool, err error) {
	// A rule of the host may send the address elsewhere, past the main table.
	if found, err := p.handle.RouteGet(p.route.Dst.IP); err == nil && len(found) > 0 && found[0].LinkIndex != p.route.LinkIndex {
		other = true
	}
	table, err := p.handle.RouteList(nil, netlink.FAMILY_V6)
	for _, r := range table {
		switch {
		case r.Dst != nil && !r.Dst.Contains(p.route.Dst.IP) || r.Type != unix.RTN_UNICAST:
		case r.LinkIndex == p.route.LinkIndex:
			placed = true
		default:
			other = true
		}
	}
	return placed, other, err
}

func (p *probeRoute) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.handle != nil {
		p.handle.Close()
		p.handle = nil
	}
}
