package portmap

import (
	"fmt"
	"net/netip"
)

// translated are the networks whose addresses nobody reaches from the Internet although they are not private by name.
var translated = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),  // DS-Lite and friends, RFC 6890
	netip.MustParsePrefix("198.18.0.0/15"), // benchmarks
	netip.MustParsePrefix("240.0.0.0/4"),
}

// unusable says why an external address is no candidate; empty if it may be one.
func unusable(a netip.Addr, exclude netip.Prefix) string {
	switch {
	case !a.IsValid() || a.IsUnspecified():
		return "the gateway has no external address"
	case exclude.Contains(a):
		return fmt.Sprintf("the gateway's external address %v is one of the overlay", a)
	case a.IsPrivate() || inAny(translated, a):
		return fmt.Sprintf("the gateway's external address %v is private: another NAT stands in front of it", a)
	case !a.IsGlobalUnicast():
		return fmt.Sprintf("the gateway's external address %v is no address of the Internet", a)
	}
	return ""
}

// behindNAT reports whether an IPv4 address of ours has to be translated.
func behindNAT(a netip.Addr) bool { return a.IsPrivate() || a.IsLoopback() || inAny(translated, a) }

func inAny(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// near reports whether an answer to a multicast question may come from a: from the gateway itself, or from our own
// network, as far as it can be judged by the address: /24, or /64 and link-local.
func near(a, gateway, self netip.Addr) bool {
	if a.WithZone("") == gateway.WithZone("") {
		return true
	}
	if a.Is4() != self.Is4() || a == self {
		return false
	}
	bits := 64
	if a.Is4() {
		bits = 24
	} else if a.IsLinkLocalUnicast() {
		return a.Zone() == gateway.Zone()
	}
	return netip.PrefixFrom(self, bits).Masked().Contains(a)
}
