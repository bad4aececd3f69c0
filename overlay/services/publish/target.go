package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A target is a port on the loopback.
type target struct {
	port  uint16
	addrs []netip.Addr
	last  atomic.Uint32 // the one of addrs that answered last
	via   func(ctx context.Context, network, address string) (net.Conn, error)
}

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// parseTarget reads a target and returns its canonical form too.
func parseTarget(s string, kind Kind) (*target, string, error) {
	text := s
	if rest, ok := strings.CutPrefix(text, "http://"); ok && kind != TCP {
		text = strings.TrimSuffix(rest, "/")
	}
	if strings.ContainsAny(text, "/?#@") {
		return nil, "", fmt.Errorf("target %.60q: want a port or ADDRESS:PORT of this machine", s)
	}
	host, port := "", text
	if strings.Contains(text, ":") {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil {
			return nil, "", fmt.Errorf("target %.60q: want a port or ADDRESS:PORT of this machine", s)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return nil, "", fmt.Errorf("target %.60q: %.20q is no port", s, port)
	}
	t := &target{port: uint16(n)}
	if host == "" || strings.EqualFold(host, "localhost") {
		t.addrs = []netip.Addr{loopback4, loopback6}
		return t, "localhost:" + strconv.Itoa(int(n)), nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Unmap().IsLoopback() {
		return nil, "", fmt.Errorf("target %.60q: only programs of this machine are published: 127.0.0.1, [::1] or localhost", s)
	}
	t.addrs = []netip.Addr{ip.Unmap()}
	return t, netip.AddrPortFrom(ip.Unmap(), t.port).String(), nil
}

// name is the Host that programs take for their own.
func (t *target) name() string { return "localhost:" + strconv.Itoa(int(t.port)) }

const dialTime = 5 * time.Second

// dial connects to the program.
func (t *target) dial(ctx context.Context) (net.Conn, error) {
	dial := t.via
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTime, KeepAlive: -1}).DialContext
	}
	first := t.last.Load()
	var failed error
	for i := range t.addrs {
		at := (int(first) + i) % len(t.addrs)
		c, err := dial(ctx, "tcp", netip.AddrPortFrom(t.addrs[at], t.port).String())
		if err == nil {
			t.last.Store(uint32(at))
			return c, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// isLocal reports whether host, without port and brackets, is how a program of
// this machine names itself.
func isLocal(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && (ip.Unmap().IsLoopback() || ip.Unmap().IsUnspecified())
}
