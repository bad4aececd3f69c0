package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenFile is Open for another process: it makes the device in the network namespace
// of this thread and returns its file, of which FromFile makes a Device in any
// namespace. The interface lives as long as somebody has the file open.
func OpenFile(c Config) (*os.File, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	opened, err := open(c)
	if err != nil {
		return nil, err
	}
	defer opened.Close() // the interface stays, with all its routes
	fd, err := duplicate(opened.(*kernelDevice).raw)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), clonePath), nil
}

func duplicate(c syscall.RawConn) (fd int, err error) {
	var failed error
	err = c.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, failed); err != nil {
		return -1, fmt.Errorf("tun: duplicate a descriptor: %w", err)
	}
	return fd, nil
}

// FromFile makes a Device of a file that OpenFile returned, with the same Config. It
// takes the file over. Closing the device removes the interface when nobody else has
// the file open.
func FromFile(f *os.File, c Config) (Device, error) {
	defer f.Close()
	if err := c.check(); err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("tun: %w", err)
	}
	fd, err := duplicate(raw)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tun: not the file of a device: %w", err)
	}
	return fromDescriptor(fd, ifr.Name(), ifr.Uint16()&unix.IFF_VNET_HDR != 0, c)
}

// OpenLink makes a TUN device for all that has no other way: with default routes for
// the protocols of which own has an address, in the network namespace of this
// thread. Each Read and Write of the file carries one packet, of IPv4 or IPv6. The
// interface lives as long as somebody has the file open.
func OpenLink(name string, mtu int, own []netip.Prefix) (*os.File, error) {
	fd, name, err := attachFlags(name, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), clonePath)
	if err := configureLink(name, mtu, own); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
