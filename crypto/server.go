package crypto

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultPort is the port of a server whose text names none.
const DefaultPort = 3478

// Server names a rendezvous server: where it is and the X25519 key that it
// proves to have. Its text is HOST[:PORT]#KEY, an IPv6 literal in brackets.
type Server struct {
	Host string // lower-case name or canonical IP address, without brackets
	Port uint16
	Key  DHPublic
}

// ParseServer reads HOST[:PORT]#KEY. Upper case is accepted and lowered, IP
// addresses are put into canonical form; the port defaults to DefaultPort.
func ParseServer(s string) (Server, error) {
	where, key, ok := strings.Cut(s, "#")
	if !ok {
		return Server{}, errors.New("crypto: server: no #KEY: want HOST[:PORT]#KEY")
	}
	host, port, err := splitHostPort(where)
	if err != nil {
		return Server{}, fmt.Errorf("crypto: server: %w", err)
	}
	k, err := ParseDHPublicText(key)
	if err != nil {
		return Server{}, fmt.Errorf("crypto: server %s: %w", host, err)
	}
	return Server{Host: host, Port: port, Key: k}, nil
}

// String returns the canonical text, without the port if it is DefaultPort.
func (s Server) String() string {
	host := s.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if s.Port != DefaultPort {
		host += ":" + strconv.Itoa(int(s.Port))
	}
	return host + "#" + s.Key.String()
}

// HostPort returns HOST:PORT as net.Dial wants it.
func (s Server) HostPort() string {
	if strings.Contains(s.Host, ":") {
		return "[" + s.Host + "]:" + strconv.Itoa(int(s.Port))
	}
	return s.Host + ":" + strconv.Itoa(int(s.Port))
}

// MarshalText returns the text of String.
func (s Server) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseServer.
func (s *Server) UnmarshalText(text []byte) error {
	parsed, err := ParseServer(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// check says whether s is canonical, as it must be inside a card.
func (s Server) check() error {
	host, err := canonicalHost(s.Host)
	if err != nil {
		return err
	}
	if host != s.Host {
		return fmt.Errorf("host %q is not canonical: want %q", s.Host, host)
	}
	if s.Port == 0 {
		return errors.New("port 0")
	}
	return s.Key.check()
}

// splitHostPort splits HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.
func splitHostPort(s string) (host string, port uint16, err error) {
	rest := ""
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if host, rest, ok = strings.Cut(inner, "]"); !ok {
			return "", 0, fmt.Errorf("%q: bracket is not closed", s)
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return "", 0, fmt.Errorf("%q: no IPv6 address between the brackets", s)
		}
	} else {
		if strings.Count(s, ":") > 1 {
			return "", 0, fmt.Errorf("%q: write an IPv6 address in brackets", s)
		}
		if i := strings.IndexByte(s, ':'); i >= 0 {
			s, rest = s[:i], s[i:]
		}
		host = s
	}
	if host, err = canonicalHost(host); err != nil {
		return "", 0, err
	}
	if rest == "" {
		return host, DefaultPort, nil
	}
	digits, ok := strings.CutPrefix(rest, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != digits {
		return "", 0, fmt.Errorf("port %q: want a number from 1 to 65535", strings.TrimPrefix(rest, ":"))
	}
	return host, uint16(n), nil
}

// canonicalHost returns an IP address in its RFC 5952 form (an IPv4-mapped one
// as IPv4) or a DNS name in lower case. What ends in a number must be an IPv4
// address, as in URLs: "127.1" and "0x7f.0.0.1" are refused, not guessed at.
func canonicalHost(s string) (string, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return "", fmt.Errorf("host %q: an address with a zone is of use on one machine only", s)
		}
		return addr.Unmap().String(), nil
	}
	s = lowerASCII(s)
	if len(s) == 0 || len(s) > 253 {
		return "", fmt.Errorf("host name of %d characters: want 1 to 253", len(s))
	}
	label := ""
	for label = range strings.SplitSeq(s, ".") {
		if !validLabel(label) {
			return "", fmt.Errorf("host %q: want an IP address or a name of letters, digits, hyphens and dots", s)
		}
	}
	if label[0] >= '0' && label[0] <= '9' {
		return "", fmt.Errorf("host %q: neither an IP address nor a name", s)
	}
	return s, nil
}

// lowerASCII lowers A-Z alone: strings.ToLower would also turn the Kelvin sign
// into a k, and so give a name a second spelling.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// validLabel checks one label of a name in lower case: letters, digits and
// inner hyphens (RFC 1123, 2.1).
func validLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
