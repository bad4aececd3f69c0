package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// Wire joins device ofA of host a and device ofB of host b, both of which it makes.
func Wire(a *Host, ofA string, b *Host, ofB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ofA
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: ofB, PeerNamespace: netlink.NsFd(b.net)}
	if err := a.link.LinkAdd(pair); err != nil {
		return fmt.Errorf("lab: wire %s of %s to %s of %s: %w", ofA, a.name, ofB, b.name, err)
	}
	if err := a.Up(ofA); err != nil {
		return err
	}
	return b.Up(ofB)
}

// Bridge makes a switch and puts the devices on it.
func (h *Host) Bridge(name string, ports ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.link.LinkAdd(bridge); err != nil {
		return fmt.Errorf("lab: %s: make the bridge %s: %w", h.name, name, err)
	}
	for _, port := range ports {
		link, err := h.link.LinkByName(port)
		if err == nil {
			err = h.link.LinkSetMaster(link, bridge)
		}
		if err != nil {
			return fmt.Errorf("lab: %s: put %s on the bridge %s: %w", h.name, port, name, err)
		}
	}
	return h.Up(name)
}

// Up switches a device on.
func (h *Host) Up(device string) error {
	link, err := h.link.LinkByName(device)
	if err == nil {
		err = h.link.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: switch %s on: %w", h.name, device, err)
	}
	return nil
}

// Address gives a device an address and the network around it.
func (h *Host) Address(device string, prefix netip.Prefix) error {
	link, err := h.link.LinkByName(device)
	if err == nil {
		err = h.link.AddrAdd(link, &netlink.Addr{IPNet: ipNet(prefix)})
	}
	if err != nil {
		return fmt.Errorf("lab: %s: give %s the address %v: %w", h.name, device, prefix, err)
	}
	return nil
}

// Gateway sends what is not on a wire of the host to the router at addr.
func (h *Host) Gateway(addr netip.Addr) error {
	if err := h.link.RouteAdd(&netlink.Route{Gw: addr.AsSlice()}); err != nil {
		return fmt.Errorf("lab: %s: use the router %v: %w", h.name, addr, err)
	}
	return nil
}

// Forward makes a router of the host.
func (h *Host) Forward() error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0); err != nil {
			return fmt.Errorf("lab: make a router of %s: %w", h.name, err)
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
