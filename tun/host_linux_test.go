package tun_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

const mtu = 1408

// prefix is that of all agents.
var prefix = netip.MustParsePrefix("fd50:494c:4f54::/48")

func config(a netip.Addr, without tun.Offload) tun.Config {
	return tun.Config{
		Name: "pilot0", Address: netip.PrefixFrom(a, 128), Route: prefix, MTU: mtu, Without: without,
	}
}

// needRoot skips a test that only root can run, or fails it where everything has
// to run.
func needRoot(t testing.TB) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	} else if err := inNamespace(func() error { return nil }); err != nil {
		why = fmt.Sprintf("needs network namespaces: %v", err)
	} else if _, err := os.Stat("/dev/net/tun"); err != nil {
		why = fmt.Sprintf("needs /dev/net/tun: %v", err)
	}
	switch {
	case why == "":
	case os.Getenv("PILOT_REQUIRE_ROOT") == "1":
		t.Fatalf("%s, and PILOT_REQUIRE_ROOT=1 forbids to skip", why)
	default:
		t.Skip(why)
	}
}

// inNamespace runs f on a thread in a new network namespace. Descriptors that f
// opens stay in it; the thread ends with f.
func inNamespace(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// namespace is a network namespace that lasts for a test, with a thread in it.
type namespace struct{ calls chan func() }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{calls: make(chan func())}
	ready, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.calls); <-ended })
	return n
}

// do runs f inside the namespace.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	result := make(chan error)
	n.calls <- func() { result <- f() }
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func (n *namespace) open(t testing.TB, c tun.Config) tun.Device {
	t.Helper()
	var d tun.Device
	n.do(t, func() (err error) { d, err = tun.Open(c); return err })
	t.Cleanup(func() { d.Close() })
	return d
}

// packetHost is the kernel behind a device: a packet socket on the interface,
// with virtio header, so that superpackets cross it whole.
type packetHost struct {
	f     *os.File
	index int
}

const vnetLen = 10

func newPacketHost(name string) (*packetHost, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	const proto = unix.ETH_P_IPV6<<8&0xff00 | unix.ETH_P_IPV6>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &packetHost{f: os.NewFile(uintptr(fd), "packet"), index: ifi.Index}, nil
}

func (h *packetHost) Inject(p tun.Packet) error {
	b := make([]byte, vnetLen, vnetLen+len(p.Data))
	if p.Partial {
		field, size := uint16(6), 48
		b[1] = unix.VIRTIO_NET_HDR_GSO_UDP_L4
		if p.Data[6] == tuntest.TCP {
			field, size = 16, 40+int(p.Data[52]>>4)*4
			b[1] = unix.VIRTIO_NET_HDR_GSO_TCPV6
			if p.Data[53]&tuntest.CWR != 0 {
				b[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
			}
		}
		if p.SegmentSize == 0 {
			b[1] = 0
		} else {
			binary.NativeEndian.PutUint16(b[2:], uint16(size))
			binary.NativeEndian.PutUint16(b[4:], uint16(p.SegmentSize))
		}
		b[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(b[6:], 40)
		binary.NativeEndian.PutUint16(b[8:], field)
	}
	_, err := h.f.Write(append(b, p.Data...))
	return err
}

func (h *packetHost) Receive(ctx context.Context) (tun.Packet, error) {
	deadline, _ := ctx.Deadline()
	if err := h.f.SetReadDeadline(deadline); err != nil {
		return tun.Packet{}, err
	}
	b := make([]byte, vnetLen+65536)
	n, err := h.f.Read(b)
	if err != nil || n < vnetLen {
		return tun.Packet{}, err
	}
	p := tun.Packet{Data: b[vnetLen:n], Partial: b[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0}
	if b[1] != 0 {
		p.SegmentSize = int(binary.NativeEndian.Uint16(b[4:]))
	}
	return p, nil
}
