package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// From netinet6/in6_var.h of macOS.
const (
	siocAIfAddrIn6   = 0x8080691a // _IOW('i', 26, struct in6_aliasreq)
	in6IffNoDAD      = 0x0020
	nd6InfiniteLife  = 0xffffffff
	sockaddrIn6Bytes = 28
)

// in6AliasReq is struct in6_aliasreq of 64-bit programs, 128 octets.
type in6AliasReq struct {
	name      [unix.IFNAMSIZ]byte
	addr      unix.RawSockaddrInet6
	dst       unix.RawSockaddrInet6
	mask      unix.RawSockaddrInet6
	flags     uint32
	expire    int64
	preferred int64
	valid     uint32
	usable    uint32
}

// The size is part of the ioctl's number; this does not compile if they differ.
var _ = [1]struct{}{}[unsafe.Sizeof(in6AliasReq{})-siocAIfAddrIn6>>16&0x1fff]

// configure gives a utun interface its address, which brings it up, and the
// route. macOS removes both with the interface.
func configure(name string, addr netip.Addr, prefix netip.Prefix) error {
	if err := addAddress(name, addr); err != nil {
		return err
	}
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("tun: %s: find the interface: %w", name, err)
	}
	err = addRoute(ifi, prefix)
	if errors.Is(err, unix.EEXIST) {
		return &HelpError{fmt.Errorf("tun: %s: %w: %s", name, ErrRouteTaken, prefix), "stop the agent that uses it"}
	}
	if err != nil {
		return fmt.Errorf("tun: %s: route %s: %w", name, prefix, err)
	}
	return nil
}

func addAddress(name string, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("tun: %s: %w: the system runs without it", name, ErrIPv6Disabled)
	}
	if err != nil {
		return fmt.Errorf("tun: %s: open an IPv6 socket: %w", name, err)
	}
	defer unix.Close(fd)
	unix.CloseOnExec(fd)
	req := in6AliasReq{
		addr:  unix.RawSockaddrInet6{Len: sockaddrIn6Bytes, Family: unix.AF_INET6, Addr: addr.As16()},
		mask:  unix.RawSockaddrInet6{Len: sockaddrIn6Bytes, Family: unix.AF_INET6},
		flags: in6IffNoDAD,
		valid: nd6InfiniteLife, usable: nd6InfiniteLife,
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	for i := range req.mask.Addr {
		req.mask.Addr[i] = 0xff
	}
	//lint:ignore SA1019 x/sys/unix has no wrapper for an ioctl with this structure.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), siocAIfAddrIn6, uintptr(unsafe.Pointer(&req)))
	switch errno {
	case 0:
		return nil
	case unix.EPERM, unix.EACCES:
		return &HelpError{fmt.Errorf("tun: %s: add address %s: %w (%w)", name, addr, ErrPermission, errno), "run it as root, with sudo"}
	}
	return fmt.Errorf("tun: %s: add address %s: %w", name, addr, errno)
}

func addRoute(ifi *net.Interface, prefix netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.CloseOnExec(fd)
	b, err := routeMessage(ifi.Index, ifi.Name, prefix)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b)
	return err
}

// routeMessage is the request to route a prefix through an interface.
func routeMessage(index int, name string, prefix netip.Prefix) ([]byte, error) {
	m := route.RouteMessage{
		Version: unix.RTM_VERSION,
		Type:    unix.RTM_ADD,
		Flags:   unix.RTF_UP | unix.RTF_STATIC,
		ID:      uintptr(os.Getpid()),
		Seq:     1,
		Addrs: []route.Addr{
			unix.RTAX_DST:     &route.Inet6Addr{IP: prefix.Masked().Addr().As16()},
			unix.RTAX_GATEWAY: &route.LinkAddr{Index: index, Name: name},
			unix.RTAX_NETMASK: &route.Inet6Addr{IP: netmask(prefix.Bits())},
		},
	}
	return m.Marshal()
}

func netmask(bits int) (m [16]byte) {
	copy(m[:], net.CIDRMask(bits, 128))
	return m
}
