package services

import (
	"os"

	"golang.org/x/sys/unix"
)

// bindToDevice makes the socket deaf to packets of other devices. What programs
// of this machine send to the address of the device counts as coming from it.
func bindToDevice(fd int, device string) error {
	return os.NewSyscallError("setsockopt SO_BINDTODEVICE", unix.BindToDevice(fd, device))
}
