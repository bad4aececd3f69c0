package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/ipam"
)

// A STUNServer is a public one that is no server of ours. It is asked beside ours
// for what it sees, and is told nothing.
type STUNServer struct {
	Host string // a name or an address
	Port uint16
}

func (s STUNServer) String() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

const (
	stunPort = 3478
	// stunLookUp is how long the names of STUN servers may take.
	stunLookUp = time.Second
)

var errSTUN = errors.New("overlay: no STUN server")

// ParseSTUNServer reads HOST or HOST:PORT, also with "stun:" before it as in RFC 7064.
func ParseSTUNServer(text string) (STUNServer, error) {
	fail := func(why string) (STUNServer, error) {
		return STUNServer{}, fmt.Errorf("%w: %.60q: %s", errSTUN, text, why)
	}
	rest := strings.TrimPrefix(text, "stun:")
	s := STUNServer{Host: rest, Port: stunPort}
	if host, port, err := net.SplitHostPort(rest); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fail("the port is a number from 1 to 65535")
		}
		s = STUNServer{Host: host, Port: uint16(n)}
	}
	if ip, err := netip.ParseAddr(strings.Trim(s.Host, "[]")); err == nil {
		if s.Host = ip.Unmap().String(); !publicSTUN(ip.Unmap()) {
			return fail("this address is none of a server")
		}
		return s, nil
	}
	if s.Host == "" || len(s.Host) > 253 {
		return fail("the host is missing or too long")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s.Host, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return fail("the host is neither a name nor an address")
		}
	}
	return s, nil
}

// publicSTUN keeps questions away from where no STUN server can be.
func publicSTUN(ip netip.Addr) bool {
	return !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ipam.Prefix().Contains(ip) && ip.Zone() == ""
}

// stunTargets looks the STUN servers up, at the same time. Of each it returns one
// address, IPv4 before IPv6, for NATs are what is asked about. Those that cannot be
// resolved are left out.
func stunTargets(ctx context.Context, u Underlay, servers []STUNServer) []netip.AddrPort {
	if len(servers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stunLookUp)
	defer cancel()
	found := make([]netip.AddrPort, len(servers))
	var wait sync.WaitGroup
	for i, s := range servers {
		wait.Go(func() {
			addrs := []netip.Addr{}
			if ip, err := netip.ParseAddr(s.Host); err == nil {
				addrs = append(addrs, ip)
			} else if addrs, err = u.LookupNetIP(ctx, s.Host); err != nil {
				return
			}
			addrs = slices.Clone(addrs) // they may be somebody else's
			slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
			for _, ip := range addrs {
				if publicSTUN(ip) {
					found[i] = netip.AddrPortFrom(ip, s.Port)
					return
				}
			}
		})
	}
	wait.Wait()
	return slices.DeleteFunc(found, func(a netip.AddrPort) bool { return !a.IsValid() })
}
