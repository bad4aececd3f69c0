package e2e_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A datagram is an IPv4 packet that passed a network card: UDP, or another
// protocol without ports and payload.
type datagram struct {
	src, dst netip.AddrPort
	protocol byte
	payload  []byte
}

// A capture keeps what passes eth0 of a host, in both directions.
type capture struct {
	file *os.File
	done chan struct{}
	mu   sync.Mutex
	seen []datagram
	keep func(datagram) bool // nil: all
}

// only makes the capture forget what it has, and keep from now on what fits; the
// payload is lent.
func (c *capture) only(fits func(datagram) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep, c.seen = fits, nil
}

// capture begins to listen; nothing that passes later is missed.
func (l *lab) capture(t *testing.T, host string) *capture {
	t.Helper()
	c := &capture{done: make(chan struct{})}
	l.inside(t, host, func() error {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		card, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: card.Index})
	})
	go c.read()
	t.Cleanup(func() {
		c.file.Close()
		<-c.done
	})
	return c
}

func (c *capture) read() {
	defer close(c.done)
	buf := make([]byte, 1<<17)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			return
		}
		if d, ok := parseFrame(buf[:n]); ok {
			c.mu.Lock()
			if c.keep == nil || c.keep(d) {
				d.payload = bytes.Clone(d.payload)
				c.seen = append(c.seen, d)
			}
			c.mu.Unlock()
		}
	}
}

// matching returns what passed so far and fits.
func (c *capture) matching(fits func(datagram) bool) []datagram {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []datagram
	for _, d := range c.seen {
		if fits(d) {
			list = append(list, d)
		}
	}
	return list
}

// lost is the number of packets that the kernel could not keep for us since the
// last call.
func (c *capture) lost(t *testing.T) uint32 {
	t.Helper()
	raw, err := c.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stats *unix.TpacketStats
	var statsErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		t.Fatal(err)
	}
	if statsErr != nil {
		t.Fatal(statsErr)
	}
	return stats.Drops
}

// parseFrame reads an Ethernet frame that holds an unfragmented IPv4 packet. The
// payload is part of it.
func parseFrame(b []byte) (datagram, bool) {
	const ethernet, ipv4, udp = 14, 20, 8
	if len(b) < ethernet+ipv4 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP {
		return datagram{}, false
	}
	b = b[ethernet:]
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 || total > len(b) {
		total = len(b) // a run of UDP_SEGMENT that is still whole
	}
	d := datagram{protocol: b[9]}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	if d.protocol == unix.IPPROTO_UDP && total >= header+udp {
		b = b[header:total]
		d.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
		d.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
		d.payload = b[udp:]
		return d, true
	}
	d.src, d.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	return d, true
}
