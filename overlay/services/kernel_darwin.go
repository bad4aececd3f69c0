package services

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// bindToDevice makes the socket deaf to packets of other devices.
func bindToDevice(fd int, device string) error {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt IPV6_BOUND_IF", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_BOUND_IF, i.Index))
}
