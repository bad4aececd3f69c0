package tun

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// frameOverhead is what the tunnel adds to each segment of a superpacket,
	// and maxDatagram the most that one UDP send takes over IPv4 or IPv6.
	frameOverhead = 32
	maxDatagram   = 65535 - headerLen - udpHeaderLen
)

// superpacketSize is the gso_max_size of a device: the largest superpacket whose
// full segments still fit into one UDP send when each has become a frame.
func superpacketSize(mtu int) int {
	const headers = headerLen + tcpHeaderLen + 12 // with the timestamp option
	return headers + max(1, maxDatagram/(mtu+frameOverhead))*(mtu-headers)
}

// configure makes an interface carry IPv6 as Config says. It works on the
// network namespace of the calling thread, like the opening of the device.
func configure(name string, addr, route netip.Prefix, mtu int, log *slog.Logger) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netlinkError(name, "open a netlink socket", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return netlinkError(name, "find the interface", err)
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		return netlinkError(name, fmt.Sprintf("set MTU %d", mtu), err)
	}
	// What follows makes the device better or quieter, and older kernels or
	// sandboxes refuse some of it. No link-local address means no router
	// solicitations and no duplicate address detection; no multicast means no
	// MLD reports. The queue stays at the 500 packets that TUN devices have.
	for _, s := range []struct {
		what string
		err  error
	}{
		{"gso_max_size", h.LinkSetGSOMaxSize(link, superpacketSize(mtu))},
		{"addr_gen_mode", h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)},
		{"multicast off", h.LinkSetMulticastOff(link)},
	} {
		if s.err != nil {
			log.Debug("interface setting not taken", "interface", name, "setting", s.what, "error", s.err)
		}
	}
	if err := enableIPv6(name); err != nil {
		return err
	}
	// What the host sends to its own address goes through the loopback device.
	if err := enableIPv6("lo"); err != nil {
		log.Warn("programs of this machine cannot reach its own address", "error", err)
	}
	ipnet := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 128)}
	err = h.AddrAdd(link, &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE})
	if err != nil {
		return addressError(name, addr, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return netlinkError(name, "bring the interface up", err)
	}
	err = h.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: route.Addr().AsSlice(), Mask: net.CIDRMask(route.Bits(), 128)},
		Src:       addr.Addr().AsSlice(),
		Protocol:  unix.RTPROT_STATIC,
		Scope:     netlink.SCOPE_UNIVERSE,
	})
	if errors.Is(err, unix.EEXIST) {
		return routeTaken(h, name, route)
	}
	if err != nil {
		return netlinkError(name, "route "+route.String(), err)
	}
	return nil
}

// configureLink brings an interface up with addresses, and as the way to everything
// that its protocols can name.
func configureLink(name string, mtu int, own []netip.Prefix) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netlinkError(name, "open a netlink socket", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return netlinkError(name, "find the interface", err)
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		return netlinkError(name, fmt.Sprintf("set MTU %d", mtu), err)
	}
	// Without it the kernel solicits routers. Older ones refuse.
	h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	for _, p := range own {
		if p.Addr().Is6() {
			if err := enableIPv6(name); err != nil {
				return err
			}
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, a); err != nil {
			return addressError(name, p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return netlinkError(name, "bring the interface up", err)
	}
	for _, p := range own {
		all := &net.IPNet{IP: make(net.IP, p.Addr().BitLen()/8), Mask: net.CIDRMask(0, p.Addr().BitLen())}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Src: p.Addr().AsSlice(), Protocol: unix.RTPROT_STATIC, Scope: netlink.SCOPE_UNIVERSE}
		if err := h.RouteAdd(route); err != nil {
			return netlinkError(name, "default route", err)
		}
	}
	return nil
}

// enableIPv6 writes 0 to the interface's disable_ipv6 unless it is 0 already:
// containers often start every interface with 1.
func enableIPv6(name string) error {
	path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	was, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat("/proc/sys/net/ipv4"); err == nil {
			return ipv6Off(name, "the kernel runs without IPv6; boot without ipv6.disable=1 or load the module: modprobe ipv6")
		}
		return nil // no /proc here; the address will tell
	}
	if err == nil && bytes.Equal(bytes.TrimSpace(was), []byte("0")) {
		return nil
	}
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		return ipv6Off(name, fmt.Sprintf("%v; start the container with --sysctl net.ipv6.conf.all.disable_ipv6=0 "+
			"--sysctl net.ipv6.conf.default.disable_ipv6=0, or mount /proc/sys writable", err))
	}
	return nil
}

const asRoot = "run it as root, or with CAP_NET_ADMIN"

func ipv6Off(name, next string) error {
	return &HelpError{fmt.Errorf("tun: %s: %w", name, ErrIPv6Disabled), next}
}

func addressError(name string, addr netip.Prefix, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return ipv6Off(name, "enable it: sysctl -w net.ipv6.conf.all.disable_ipv6=0, or for a container "+
			"--sysctl net.ipv6.conf.all.disable_ipv6=0")
	}
	return netlinkError(name, "add address "+addr.String(), err)
}

// routeTaken names the interface that has the route.
func routeTaken(h *netlink.Handle, name string, route netip.Prefix) error {
	by := "another interface"
	routes, err := h.RouteList(nil, netlink.FAMILY_V6)
	if err == nil {
		for _, r := range routes {
			if r.Dst != nil && r.Dst.String() == route.String() {
				if l, err := h.LinkByIndex(r.LinkIndex); err == nil {
					by = l.Attrs().Name
				}
			}
		}
	}
	return &HelpError{fmt.Errorf("tun: %s: %w: %s goes through %s", name, ErrRouteTaken, route, by),
		"stop the agent that uses it, or run this one with --tun userspace or in a network namespace of its own"}
}

func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &HelpError{fmt.Errorf("tun: open %s: %w (%w)", clonePath, ErrNoDevice, err),
			"load the driver with modprobe tun; for a container add --device " + clonePath + " --cap-add NET_ADMIN"}
	case errors.Is(err, fs.ErrPermission):
		return &HelpError{fmt.Errorf("tun: open %s: %w (%w)", clonePath, ErrPermission, err),
			"run it as root, or with CAP_NET_ADMIN; for a container add --device " + clonePath + " --cap-add NET_ADMIN"}
	}
	return fmt.Errorf("tun: open %s: %w", clonePath, err)
}

func attachError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &HelpError{fmt.Errorf("tun: make interface %s: %w (%w)", name, ErrPermission, err), asRoot}
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return &HelpError{fmt.Errorf("tun: make interface %s: %w (%w)", name, ErrNameTaken, err),
			"choose another name, or find its owner with ip -details link show " + name}
	}
	return fmt.Errorf("tun: make interface %s: %w", name, err)
}

func netlinkError(name, what string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &HelpError{fmt.Errorf("tun: %s: %s: %w (%w)", name, what, ErrPermission, err), asRoot}
	}
	return fmt.Errorf("tun: %s: %s: %w", name, what, err)
}
