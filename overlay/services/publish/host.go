package publish

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/pilotnet/pilot/ipam"
)

// ownHost reports whether a Host header names this agent.
func ownHost(host string, own ipam.Addr) bool {
	if a, err := ipam.ParseAddr(host); err == nil {
		return a == own
	}
	if a, err := ipam.ParseAddrPort(host); err == nil {
		return a.Addr == own
	}
	name := host
	if ip, err := netip.ParseAddr(host); err == nil { // without brackets, as some clients write it
		return ip == own.ULA()
	}
	if h, port, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return false
		}
		name = h
	} else if strings.HasPrefix(name, "[") {
		name = strings.TrimSuffix(name[1:], "]")
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip == own.ULA()
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	name = strings.TrimSuffix(name, "."+ipam.Suffix)
	return ipam.ValidName(name) == nil
}

// sameOrigin reports whether an Origin is that of the pages that this Host
// serves.
func sameOrigin(origin, host string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return false
	}
	return authority(u.Host) == authority(host)
}

// authority is HOST:PORT in lower case, with the port of http where none is given.
func authority(host string) string {
	host = strings.ToLower(host)
	if h, port, err := net.SplitHostPort(host); err == nil {
		return net.JoinHostPort(strings.TrimSuffix(h, "."), port)
	}
	return net.JoinHostPort(strings.TrimSuffix(strings.Trim(host, "[]"), "."), "80")
}

// withPort is a Host header with another port, which is left out if it is 80.
func withPort(host string, port uint16) string {
	h, _, err := net.SplitHostPort(authority(host))
	if err != nil {
		return host
	}
	if port == 80 {
		if strings.Contains(h, ":") {
			return "[" + h + "]"
		}
		return h
	}
	return net.JoinHostPort(h, strconv.Itoa(int(port)))
}

// isClaim reports whether programs take a header of that name for the caller's
// identity. CGI, WSGI and their like make no difference between "-" and "_".
func isClaim(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return name == "forwarded" || name == "x-real-ip" ||
		strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "pilot-peer-")
}

// strip removes what a client claims to be.
func strip(h http.Header) {
	for name := range h {
		if isClaim(name) {
			delete(h, name)
		}
	}
}
