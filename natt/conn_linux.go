package natt

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// batchSize bounds the time that one system call takes, and what a reader spends on buffers: 32 of 64 KiB.
	batchSize = 32
	// maxSegments is the least limit of the kernels that have UDP_SEGMENT.
	maxSegments = 64
	// maxRunBytes is what fits one IPv4 packet.
	maxRunBytes = 65535 - 20 - 8
	// spareWriters bounds the write states kept for reuse.
	spareWriters = 4
	// maxNoSegment bounds the addresses remembered as refusing UDP_SEGMENT. A host that passes it has no use for runs.
	maxNoSegment = 256
)

// linuxConn is a PacketConn on a raw socket that the runtime's poller watches.
type linuxConn struct {
	file    *os.File // owns the descriptor
	rc      syscall.RawConn
	local   netip.AddrPort
	ipv6    bool // an AF_INET6 socket, dual stack or not
	pktinfo bool
	offload Offload
	gso     atomic.Bool
	reader  reader
	writers chan *writer // spare ones

	mu        sync.Mutex
	noSegment atomic.Pointer[map[netip.Addr]struct{}] // replaced under mu
}

func listen(c ListenConfig) (PacketConn, error) {
	ip := c.Addr.Addr()
	if ip.Is4() {
		return open(c, false)
	}
	conn, err := open(c, true)
	// No IPv6 in the kernel, or none enabled.
	if err != nil && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) && (!ip.IsValid() || ip.IsUnspecified()) {
		c.Logger.Info("natt: no IPv6 on this host", "err", err)
		c.Addr = netip.AddrPortFrom(netip.IPv4Unspecified(), c.Addr.Port())
		return open(c, false)
	}
	return conn, err
}

func open(c ListenConfig, ipv6 bool) (PacketConn, error) {
	fail := func(what string, err error) error {
		return fmt.Errorf("natt: listen %v: %w", c.Addr, os.NewSyscallError(what, err))
	}
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fail("socket", err)
	}
	conn := &linuxConn{ipv6: ipv6, pktinfo: c.PacketInfo}
	if what, err := conn.configure(fd, c); err != nil {
		unix.Close(fd)
		return nil, fail(what, err)
	}
	conn.file = os.NewFile(uintptr(fd), "udp") // owns fd from here
	if conn.rc, err = conn.file.SyscallConn(); err != nil {
		conn.file.Close()
		return nil, fail("poll", err)
	}
	conn.gso.Store(conn.offload.GSO)
	conn.reader.init(conn)
	conn.writers = make(chan *writer, spareWriters)
	return conn, nil
}

// configure sets the options, binds, and finds out what the kernel can do. On an error it says which call failed.
func (c *linuxConn) configure(fd int, lc ListenConfig) (string, error) {
	if lc.Device != "" {
		if err := unix.BindToDevice(fd, lc.Device); err != nil {
			return "bind to device " + lc.Device, err
		}
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, lc.ReceiveBuffer)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, lc.ReceiveBuffer)
	if c.ipv6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return "setsockopt IPV6_V6ONLY", err
		}
	}
	if lc.DontFragment {
		// On a dual-stack socket both families have their own option.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
			return "setsockopt IP_MTU_DISCOVER", err
		}
		if c.ipv6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
				return "setsockopt IPV6_MTU_DISCOVER", err
			}
		}
	}
	if lc.PacketInfo {
		// An AF_INET6 socket reports IPv4 addresses here too, in their mapped form.
		level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
		if c.ipv6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return "setsockopt PKTINFO", err
		}
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(lc.Addr.Port())}
	if lc.Addr.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(lc.Addr.Port()), Addr: lc.Addr.Addr().As4()}
	} else if c.ipv6 {
		sa6 := &unix.SockaddrInet6{Port: int(lc.Addr.Port())}
		if lc.Addr.Addr().IsValid() {
			sa6.Addr = lc.Addr.Addr().As16()
		}
		sa = sa6
	}
	if err := unix.Bind(fd, sa); err != nil {
		return "bind", err
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return "getsockname", err
	}
	switch sa := bound.(type) {
	case *unix.SockaddrInet4:
		c.local = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		c.local = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	c.probe(fd, lc)
	return "", nil
}

func (c *linuxConn) probe(fd int, lc ListenConfig) {
	if !lc.NoGSO {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		c.offload.GSO = err == nil
	}
	if !lc.NoGRO {
		c.offload.GRO = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	}
	if !lc.NoBatch { // empty batches do nothing, where the calls exist and no filter forbids them
		_, _, read := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		_, _, write := syscall.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		c.offload.Batch = read == 0 && write == 0
	}
	lc.Logger.Debug("natt: socket", "addr", c.local, "gso", c.offload.GSO, "gro", c.offload.GRO, "batch", c.offload.Batch)
}

func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size) // the limit of the system applies
	}
}

func (c *linuxConn) LocalAddr() netip.AddrPort { return c.local }
func (c *linuxConn) BatchSize() int            { return batchSize }

func (c *linuxConn) Offload() Offload {
	o := c.offload
	o.GSO = c.gso.Load()
	return o
}

func (c *linuxConn) Close() error {
	if err := c.file.Close(); err != nil {
		return net.ErrClosed
	}
	return nil
}

// segments reports whether runs to an address may be handed over in one piece.
func (c *linuxConn) segments(ip netip.Addr) bool {
	if !c.gso.Load() {
		return false
	}
	if refused := c.noSegment.Load(); refused != nil {
		_, found := (*refused)[ip]
		return !found
	}
	return true
}

// refuseSegments remembers that the way to an address cannot cut runs, as links without checksum offload cannot.
func (c *linuxConn) refuseSegments(ip netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := map[netip.Addr]struct{}{ip: {}}
	if old := c.noSegment.Load(); old != nil {
		if len(*old) >= maxNoSegment {
			c.gso.Store(false)
			return
		}
		for a := range *old {
			next[a] = struct{}{}
		}
	}
	c.noSegment.Store(&next)
}
