package natt

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hops reads one datagram and returns the time to live that it came with.
func hops(t *testing.T, c *net.UDPConn) int {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 100), make([]byte, 100)
	_, n, _, _, err := c.ReadMsgUDP(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT {
			return int(m.Data[0]) | int(m.Data[1])<<8
		}
	}
	t.Fatal("no time to live with the datagram")
	return 0
}

// Openers leave with the time to live that was asked for, and only they do.
func TestWriteTTL(t *testing.T) {
	t.Parallel()
	for network, ip := range map[string]string{"udp4": "127.0.0.1", "udp6": "::1"} {
		to, err := net.ListenUDP(network, &net.UDPAddr{IP: net.ParseIP(ip)})
		if err != nil {
			t.Skipf("%s: %v", network, err)
		}
		defer to.Close()
		raw, err := to.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) {
			if network == "udp4" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
			}
		}); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		a := listenTest(t, ListenConfig{})
		addr := netip.MustParseAddrPort(to.LocalAddr().String())
		m := []Message{{Buf: []byte("x"), Addr: addr}}
		if _, err := a.WriteBatch(m); err != nil {
			t.Fatal(err)
		}
		usual := hops(t, to)
		for _, ttl := range append([]int{1, 255}, OpenerTTL()...) {
			if n, err := a.WriteTTL(m, ttl); n != 1 || err != nil {
				t.Fatalf("%s: %d sent, %v", network, n, err)
			}
			if got := hops(t, to); got != ttl {
				t.Errorf("%s: arrives with %d, want %d", network, got, ttl)
			}
			if _, err := a.WriteBatch(m); err != nil {
				t.Fatal(err)
			}
			if got := hops(t, to); got != usual {
				t.Errorf("%s: the next one arrives with %d, want %d", network, got, usual)
			}
		}
	}
}
