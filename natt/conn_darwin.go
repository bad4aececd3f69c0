package natt

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

func listen(c ListenConfig) (PacketConn, error) {
	if !c.DontFragment {
		return listenGeneric(c, nil)
	}
	return listenGeneric(c, func(network, _ string, rc syscall.RawConn) error {
		var err4, err6 error
		err := rc.Control(func(fd uintptr) {
			err4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
			err6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		})
		switch {
		case err != nil:
			return err
		case network == "udp4":
			return err4
		case err6 == nil:
			return nil // a dual-stack socket may refuse the IPv4 option
		}
		return errors.Join(err4, err6)
	})
}
