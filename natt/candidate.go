package natt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// CandidateKind says how an agent came to know an address of its own.
type CandidateKind uint8

const (
	// Host is the address of one of the agent's interfaces.
	Host CandidateKind = 1
	// Observed is the source address that somebody else saw.
	Observed CandidateKind = 2
	// Mapped is an address that a router was asked to map.
	Mapped CandidateKind = 3
)

func (k CandidateKind) String() string {
	switch k {
	case Host:
		return "host"
	case Observed:
		return "observed"
	case Mapped:
		return "mapped"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Candidate is an address at which an agent may be reached.
type Candidate struct {
	Kind CandidateKind
	Addr netip.AddrPort
}

func (c Candidate) String() string { return c.Kind.String() + " " + c.Addr.String() }

// MaxCandidates is the number of candidates that a list holds at most.
const MaxCandidates = 16

// hostCandidates leaves room in a list for observed and mapped addresses.
const hostCandidates = 12

// globalIPv6Candidates bounds the public IPv6 addresses (temporary ones pile up) so that the private addresses keep a place.
const globalIPv6Candidates = 4

var errCandidates = errors.New("natt: candidates: malformed list")

// AppendCandidates appends the encoding of a list to dst. Only the first MaxCandidates entries are encoded,
// and none that ParseCandidates would refuse.
func AppendCandidates(dst []byte, list []Candidate) []byte {
	at := len(dst)
	dst = append(dst, 0)
	seen := make([]netip.AddrPort, 0, MaxCandidates)
	for _, c := range list {
		if len(seen) == MaxCandidates {
			break
		}
		if c.Kind == 0 || !encodable(c.Addr) || slices.Contains(seen, c.Addr) {
			continue
		}
		seen = append(seen, c.Addr)
		family := byte(6)
		if c.Addr.Addr().Is4() {
			family = 4
		}
		dst = append(dst, byte(c.Kind), family)
		dst = append(dst, c.Addr.Addr().AsSlice()...)
		dst = binary.BigEndian.AppendUint16(dst, c.Addr.Port())
	}
	dst[at] = byte(len(seen))
	return dst
}

// ParseCandidates reads a list as AppendCandidates writes it, and nothing else. It judges the form only: what an
// address is good for is decided by UsableCandidates. Kinds that are not known yet are accepted.
func ParseCandidates(b []byte) ([]Candidate, error) {
	if len(b) == 0 || b[0] > MaxCandidates {
		return nil, errCandidates
	}
	list := make([]Candidate, 0, b[0])
	count := int(b[0])
	b = b[1:]
	for range count {
		if len(b) < 2 || b[0] == 0 {
			return nil, errCandidates
		}
		size := 0
		switch b[1] {
		case 4:
			size = 4
		case 6:
			size = 16
		default:
			return nil, errCandidates
		}
		if len(b) < 2+size+2 {
			return nil, errCandidates
		}
		ip, _ := netip.AddrFromSlice(b[2 : 2+size])
		c := Candidate{CandidateKind(b[0]), netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[2+size:]))}
		if !encodable(c.Addr) || slices.ContainsFunc(list, func(o Candidate) bool { return o.Addr == c.Addr }) {
			return nil, errCandidates
		}
		list = append(list, c)
		b = b[2+size+2:]
	}
	if len(b) != 0 {
		return nil, errCandidates
	}
	return list, nil
}

// encodable reports whether an address has exactly one encoding.
func encodable(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().Is4In6() && a.Addr().Zone() == ""
}

// HostCandidates returns the candidates that the addresses of our interfaces (as Interfaces returns them) make with a
// port: public ones first, then private ones in the order given. Loopback, link-local, multicast and unspecified
// addresses and those inside exclude (the overlay's own prefix) are left out.
func HostCandidates(ifaces []netip.Prefix, port uint16, exclude netip.Prefix) []Candidate {
	var public, private []Candidate
	ipv6 := 0
	for _, p := range ifaces {
		ip := p.Addr().Unmap().WithZone("")
		if !reachable(ip, exclude) {
			continue
		}
		c := Candidate{Host, netip.AddrPortFrom(ip, port)}
		switch {
		case slices.Contains(public, c) || slices.Contains(private, c):
		case ip.IsPrivate():
			private = append(private, c)
		case ip.Is4():
			public = append(public, c)
		case ipv6 < globalIPv6Candidates:
			ipv6++
			public = append(public, c)
		}
	}
	list := append(public, private...)
	return list[:min(len(list), hostCandidates)]
}

// UsableCandidates returns those of a peer's candidates that we may send to: of a known kind, no loopback, link-local,
// multicast, broadcast or unspecified address, not inside exclude (the overlay's own prefix), none of our own
// addresses, and a private address only where one of our interfaces is on the same network.
func UsableCandidates(list []Candidate, ifaces []netip.Prefix, exclude netip.Prefix) []Candidate {
	var usable []Candidate
	for _, c := range list {
		ip := c.Addr.Addr()
		if c.Kind < Host || c.Kind > Mapped || !encodable(c.Addr) || !reachable(ip, exclude) {
			continue
		}
		onLink, ours := false, false
		for _, p := range ifaces {
			onLink = onLink || p.Masked().Contains(ip)
			ours = ours || p.Addr() == ip
		}
		if ip.IsPrivate() && !onLink || ours {
			continue
		}
		usable = append(usable, c)
	}
	return usable
}

// reachable reports whether an address can be that of an agent on the underlay at all.
func reachable(ip netip.Addr, exclude netip.Prefix) bool {
	return ip.IsValid() && !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() &&
		ip != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !(exclude.IsValid() && exclude.Contains(ip))
}

// LinkMTU returns the largest MTU of this host's interfaces that are up, without loopback interfaces; 0 if there is none.
func LinkMTU() (int, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("natt: interfaces: %w", err)
	}
	mtu := 0
	for _, i := range ifaces {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			mtu = max(mtu, i.MTU)
		}
	}
	return mtu, nil
}

// Interfaces returns the addresses of this host's interfaces that are up, each with the length of its network, without
// loopback interfaces.
func Interfaces() ([]netip.Prefix, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("natt: interfaces: %w", err)
	}
	var list []netip.Prefix
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface went away while we looked
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			if !ok {
				continue
			}
			ones, _ := n.Mask.Size()
			list = append(list, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return list, nil
}
