package trust

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Transport protocols that a Port can name.
const (
	ProtoAny = 0 // TCP and UDP
	ProtoTCP = 6
	ProtoUDP = 17
)

// MaxPorts is the largest number of entries in a Scope.
const MaxPorts = 64

// portSize is the wire size of one entry: protocol, first and last port.
const portSize = 5

// A Port is a range of ports, of one transport protocol or of both.
type Port struct {
	Proto  uint8 // ProtoAny, ProtoTCP or ProtoUDP
	Lo, Hi uint16
}

// A Scope says which ports may be reached. It is normalised: the entries
// ascend, do not overlap, and neighbours of the same protocol are merged, so
// that a set of ports has exactly one Scope. The nil Scope allows no port
// (ping passes with any scope; that is the firewall's matter).
type Scope []Port

// DefaultAsk is what a request asks for unless it says otherwise: echo, the
// web, and the three services of an agent.
var DefaultAsk = Scope{{0, 7, 7}, {0, 80, 80}, {0, 443, 443}, {0, 1001, 1003}}

// DefaultOffer is what a requester offers in return: echo.
var DefaultOffer = Scope{{0, 7, 7}}

// AllPorts is the scope that has to be spelled out by both sides.
var AllPorts = Scope{{0, 1, 65535}}

// ParseScope reads a list such as "80,8080/tcp,53/udp,1000-1003". "all" means
// every port, "" and "none" no port.
func ParseScope(text string) (Scope, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	switch text {
	case "", "none":
		return nil, nil
	case "all":
		return slices.Clone(AllPorts), nil
	}
	if len(text) > 2048 {
		return nil, fmt.Errorf("trust: ports: list of %d characters is too long", len(text))
	}
	var ports []Port
	for item := range strings.SplitSeq(text, ",") {
		p, err := parsePort(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return NewScope(ports...)
}

func parsePort(item string) (Port, error) {
	var p Port
	numbers, proto, named := strings.Cut(item, "/")
	switch {
	case !named:
	case proto == "tcp":
		p.Proto = ProtoTCP
	case proto == "udp":
		p.Proto = ProtoUDP
	default:
		return p, fmt.Errorf("trust: ports: %q: protocol must be tcp or udp", item)
	}
	lo, hi, isRange := strings.Cut(numbers, "-")
	if !isRange {
		hi = lo
	}
	var err error
	if p.Lo, err = parseNumber(lo); err == nil {
		p.Hi, err = parseNumber(hi)
	}
	if err != nil || p.Lo > p.Hi {
		return p, fmt.Errorf("trust: ports: %q: want PORT or PORT-PORT within 1-65535, then /tcp or /udp or neither", item)
	}
	return p, nil
}

func parseNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && (n == 0 || s[0] < '1' || s[0] > '9') {
		err = strconv.ErrSyntax
	}
	return uint16(n), err
}

// NewScope normalises a list of ranges in any order, overlapping or not.
func NewScope(ports ...Port) (Scope, error) {
	for _, p := range ports {
		if p.Lo == 0 || p.Lo > p.Hi || classOf(p.Proto) == 0 {
			return nil, fmt.Errorf("trust: ports: invalid range %d-%d of protocol %d", p.Lo, p.Hi, p.Proto)
		}
	}
	s := combine(func(port uint16) uint8 { return classAt(ports, port) }, ports)
	if len(s) > MaxPorts {
		return nil, fmt.Errorf("trust: ports: %d ranges, at most %d fit", len(s), MaxPorts)
	}
	return s, nil
}

// A class is a set of protocols: bit 0 TCP, bit 1 UDP.
func classOf(proto uint8) uint8 {
	switch proto {
	case ProtoAny:
		return 3
	case ProtoTCP:
		return 1
	case ProtoUDP:
		return 2
	}
	return 0
}

func classAt(ports []Port, port uint16) uint8 {
	var c uint8
	for _, p := range ports {
		if p.Lo <= port && port <= p.Hi {
			c |= classOf(p.Proto)
		}
	}
	return c
}

// combine returns the normal form of the set that class describes. Class may
// change its value only at the edges of the given ranges.
func combine(class func(port uint16) uint8, edges ...[]Port) Scope {
	var starts []int
	for _, ports := range edges {
		for _, p := range ports {
			starts = append(starts, int(p.Lo), int(p.Hi)+1)
		}
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	var s Scope
	for i, lo := range starts {
		if i+1 == len(starts) {
			break
		}
		c := class(uint16(lo))
		if c == 0 {
			continue
		}
		p := Port{Proto: [4]uint8{0, ProtoTCP, ProtoUDP, ProtoAny}[c], Lo: uint16(lo), Hi: uint16(starts[i+1] - 1)}
		if n := len(s); n > 0 && s[n-1].Proto == p.Proto && int(s[n-1].Hi)+1 == int(p.Lo) {
			s[n-1].Hi = p.Hi
			continue
		}
		s = append(s, p)
	}
	return s
}

// Allows reports whether the port of the transport protocol (6 or 17) is in
// the scope. It does not allocate.
func (s Scope) Allows(proto uint8, port uint16) bool {
	if proto != ProtoTCP && proto != ProtoUDP {
		return false
	}
	for _, p := range s {
		if port < p.Lo {
			return false
		}
		if port <= p.Hi {
			return p.Proto == ProtoAny || p.Proto == proto
		}
	}
	return false
}

// All reports whether the scope holds every port of both protocols.
func (s Scope) All() bool { return len(s) == 1 && s[0] == AllPorts[0] }

// Within reports whether every port of s is in o too.
func (s Scope) Within(o Scope) bool { return slices.Equal(s.Intersect(o), s) }

// Intersect returns the ports that are in both.
func (s Scope) Intersect(o Scope) Scope {
	r := combine(func(port uint16) uint8 { return classAt(s, port) & classAt(o, port) }, s, o)
	if len(r) > MaxPorts { // only many single ports against alternating ranges; grant less, never more
		r = r[:MaxPorts]
	}
	return r
}

// String is the form that ParseScope reads; the empty scope is "".
func (s Scope) String() string {
	if s.All() {
		return "all"
	}
	var b strings.Builder
	for i, p := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(p.Lo)))
		if p.Hi != p.Lo {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(p.Hi)))
		}
		switch p.Proto {
		case ProtoTCP:
			b.WriteString("/tcp")
		case ProtoUDP:
			b.WriteString("/udp")
		}
	}
	return b.String()
}

// MarshalText gives the text form.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the text form.
func (s *Scope) UnmarshalText(b []byte) error {
	v, err := ParseScope(string(b))
	if err == nil {
		*s = v
	}
	return err
}

// append adds the wire form: protocol, first, last, for each entry.
func (s Scope) append(b []byte) []byte {
	for _, p := range s {
		b = append(b, p.Proto)
		b = binary.BigEndian.AppendUint16(b, p.Lo)
		b = binary.BigEndian.AppendUint16(b, p.Hi)
	}
	return b
}

// readScope reads a whole number of wire entries and accepts the normal form only.
func readScope(b []byte) (Scope, error) {
	if len(b)%portSize != 0 || len(b) > MaxPorts*portSize {
		return nil, fmt.Errorf("trust: ports: %d bytes", len(b))
	}
	var s Scope
	for ; len(b) > 0; b = b[portSize:] {
		s = append(s, Port{b[0], binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:])})
	}
	return s, s.check()
}

// check reports an error when s is not in normal form.
func (s Scope) check() error {
	if len(s) > MaxPorts {
		return fmt.Errorf("trust: ports: %d ranges, at most %d fit", len(s), MaxPorts)
	}
	for i, p := range s {
		ok := p.Lo > 0 && p.Lo <= p.Hi && classOf(p.Proto) != 0
		if ok && i > 0 {
			last := s[i-1]
			ok = last.Hi < p.Lo && (last.Proto != p.Proto || last.Hi+1 != p.Lo)
		}
		if !ok {
			return fmt.Errorf("trust: ports: entry %d is not in normal form", i)
		}
	}
	return nil
}
