package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The flood is our own, and not iperf3's, because it is to show what the way
// between two hosts carries: iperf3 takes one datagram a system call and lets a
// small buffer run over meanwhile, so that it loses half of what Pilot delivers
// and the figure becomes its own. This one sends and takes many a call, as servers
// of small datagrams do; each is a datagram of its own all the way to the TUN.
const (
	floodPort  = 5202
	floodBatch = 64
	floodRoom  = 2048
)

// A burst is what one sendmmsg or recvmmsg takes.
type burst struct {
	heads [floodBatch]struct {
		unix.Msghdr
		len uint32
	}
	parts [floodBatch]unix.Iovec
	data  [floodBatch][floodRoom]byte
}

func newBurst(size int) *burst {
	b := new(burst)
	for i := range b.heads {
		b.parts[i].Base = &b.data[i][0]
		b.parts[i].SetLen(size)
		b.heads[i].Iov = &b.parts[i]
		b.heads[i].SetIovlen(1)
	}
	return b
}

// call makes a system call of the mmsg kind on a blocking socket and returns
// the number of datagrams.
func (b *burst) call(trap uintptr, fd int, flags uintptr) (int, error) {
	n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.heads[0])), floodBatch, flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// udpSocket returns a blocking socket with large buffers, connected if to is an
// address and else bound to the port.
func udpSocket(to net.IP) (int, error) {
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: floodPort}
	if to4 := to.To4(); to4 != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: floodPort, Addr: [4]byte(to4)}
	} else if to != nil {
		sa = &unix.SockaddrInet6{Port: floodPort, Addr: [16]byte(to.To16())}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 4<<20); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if to == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	} else {
		err = os.NewSyscallError("connect", unix.Connect(fd, sa))
	}
	return fd, err
}

// sink counts datagrams, and answers those of one byte with the count so far.
func sink() error {
	fd, err := udpSocket(nil)
	if err != nil {
		return err
	}
	fmt.Println("counting")
	b := newBurst(floodRoom)
	var from [floodBatch]unix.RawSockaddrInet6
	var count uint64
	for {
		for i := range b.heads {
			b.heads[i].Name, b.heads[i].Namelen = (*byte)(unsafe.Pointer(&from[i])), unix.SizeofSockaddrInet6
		}
		n, err := b.call(unix.SYS_RECVMMSG, fd, unix.MSG_WAITFORONE)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("recvmmsg", err)
		}
		for i := range b.heads[:n] {
			if b.heads[i].len > 1 {
				count++
				continue
			}
			answer := binary.BigEndian.AppendUint64(nil, count)
			_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&answer[0])), uintptr(len(answer)), 0,
				uintptr(unsafe.Pointer(&from[i])), unix.SizeofSockaddrInet6)
			if errno != 0 {
				return os.NewSyscallError("sendto", errno)
			}
		}
	}
}

// flood sends for so long as fast as it can and prints how many arrived.
func flood(address, size, seconds string) error {
	octets, err := strconv.Atoi(size)
	s, err2 := strconv.Atoi(seconds)
	to := net.ParseIP(address)
	if err := errors.Join(err, err2); err != nil || to == nil || octets < 2 || octets > floodRoom {
		return fmt.Errorf("flood %s %s %s: want an address, a size and seconds", address, size, seconds)
	}
	fd, err := udpSocket(to)
	if err != nil {
		return err
	}
	b := newBurst(octets)
	for end := time.Now().Add(time.Duration(s) * time.Second); time.Now().Before(end); {
		switch _, err := b.call(unix.SYS_SENDMMSG, fd, 0); err {
		case nil, unix.ENOBUFS, unix.EINTR, unix.ECONNREFUSED:
		default:
			return os.NewSyscallError("sendmmsg", err)
		}
	}
	time.Sleep(200 * time.Millisecond) // what is on its way counts
	wait := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var count [8]byte
	for range 50 {
		_, _ = unix.Write(fd, []byte{0}) // asked again if lost
		if n, _ := unix.Read(fd, count[:]); n == len(count) {
			fmt.Println("received", binary.BigEndian.Uint64(count[:]))
			return nil
		}
	}
	return errors.New("the sink does not answer")
}
