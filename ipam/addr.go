package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Addr is the permanent address of an agent. It is comparable. The zero value
// is no agent's address: node 0 is reserved.
type Addr struct {
	Network uint16
	Node    uint32
}

const addrLen = len("NNNN.HHHH.LLLL")

// ParseAddr reads N:NNNN.HHHH.LLLL. It refuses two different networks, any
// network but 0, and every spelling but the one of String (either case).
func ParseAddr(s string) (Addr, error) {
	decimal, hex, ok := strings.Cut(s, ":")
	if !ok || len(hex) != addrLen || hex[4] != '.' || hex[9] != '.' {
		return Addr{}, fmt.Errorf("ipam: address %q: want N:NNNN.HHHH.LLLL", clip(s))
	}
	network, err := strconv.ParseUint(decimal, 10, 16)
	if err != nil || strconv.FormatUint(network, 10) != decimal {
		return Addr{}, fmt.Errorf("ipam: address %q: network is not a number from 0 to 65535", clip(s))
	}
	var group [3]uint16
	for i := range group {
		n, err := strconv.ParseUint(hex[5*i:5*i+4], 16, 16)
		if err != nil {
			return Addr{}, fmt.Errorf("ipam: address %q: want three groups of four hexadecimal digits", clip(s))
		}
		group[i] = uint16(n)
	}
	if uint16(network) != group[0] {
		return Addr{}, fmt.Errorf("ipam: address %q: network is %d in decimal but %d in hexadecimal", clip(s), network, group[0])
	}
	if network != 0 {
		return Addr{}, fmt.Errorf("ipam: address %q: network %d does not exist", clip(s), network)
	}
	return Addr{Network: group[0], Node: uint32(group[1])<<16 | uint32(group[2])}, nil
}

// AddrFromBytes is the inverse of Bytes. It checks nothing: see Valid.
func AddrFromBytes(b [6]byte) Addr {
	return Addr{Network: binary.BigEndian.Uint16(b[:2]), Node: binary.BigEndian.Uint32(b[2:])}
}

// Bytes returns the address as six bytes, big-endian.
func (a Addr) Bytes() [6]byte {
	var b [6]byte
	binary.BigEndian.PutUint16(b[:2], a.Network)
	binary.BigEndian.PutUint32(b[2:], a.Node)
	return b
}

// Valid reports whether an agent may have the address: a node that is not
// reserved in network 0.
func (a Addr) Valid() bool { return a.Network == 0 && !reservedNode(a.Node) }

// IsZero reports whether a is the zero value.
func (a Addr) IsZero() bool { return a == Addr{} }

// String returns N:NNNN.HHHH.LLLL.
func (a Addr) String() string {
	return fmt.Sprintf("%d:%04x.%04x.%04x", a.Network, a.Network, a.Node>>16, a.Node&0xffff)
}

// MarshalText returns the text of String.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is ParseAddr.
func (a *Addr) UnmarshalText(text []byte) error {
	parsed, err := ParseAddr(string(text))
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// prefix is fd50:494c:4f54::/48: 0xfd and "PILOT".
var prefix = [6]byte{0xfd, 'P', 'I', 'L', 'O', 'T'}

// Prefix returns fd50:494c:4f54::/48, which holds every agent.
func Prefix() netip.Prefix {
	var b [16]byte
	copy(b[:], prefix[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 8*len(prefix))
}

// ULA returns the IPv6 address fd50:494c:4f54:NNNN::HHHH:LLLL.
func (a Addr) ULA() netip.Addr {
	var b [16]byte
	copy(b[:], prefix[:])
	binary.BigEndian.PutUint16(b[6:], a.Network)
	binary.BigEndian.PutUint32(b[12:], a.Node)
	return netip.AddrFrom16(b)
}

// FromULA is the inverse of ULA. It says false for an address outside the
// prefix, of a network that does not exist, with bits set between network and
// node, or with a zone. It does not allocate.
func FromULA(ip netip.Addr) (Addr, bool) {
	if !ip.Is6() || ip.Zone() != "" {
		return Addr{}, false
	}
	b := ip.As16()
	if [6]byte(b[:6]) != prefix || [6]byte(b[6:12]) != [6]byte{} {
		return Addr{}, false
	}
	return Addr{Node: binary.BigEndian.Uint32(b[12:])}, true
}

// AddrPort is a port of an agent.
type AddrPort struct {
	Addr
	Port uint16
}

// ParseAddrPort reads N:NNNN.HHHH.LLLL:PORT.
func ParseAddrPort(s string) (AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s, ':') == i {
		return AddrPort{}, fmt.Errorf("ipam: socket address %q: want N:NNNN.HHHH.LLLL:PORT", clip(s))
	}
	a, err := ParseAddr(s[:i])
	if err != nil {
		return AddrPort{}, err
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || strconv.FormatUint(port, 10) != s[i+1:] {
		return AddrPort{}, fmt.Errorf("ipam: socket address %q: port is not a number from 0 to 65535", clip(s))
	}
	return AddrPort{Addr: a, Port: uint16(port)}, nil
}

// String returns N:NNNN.HHHH.LLLL:PORT.
func (p AddrPort) String() string { return p.Addr.String() + ":" + strconv.Itoa(int(p.Port)) }

// MarshalText returns the text of String.
func (p AddrPort) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParseAddrPort.
func (p *AddrPort) UnmarshalText(text []byte) error {
	parsed, err := ParseAddrPort(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// clip keeps refused input short in an error text.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
