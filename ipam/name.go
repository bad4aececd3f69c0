package ipam

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// Suffix is the domain of peers. The top-level domain internal is reserved
	// for private use by ICANN (resolution 2024.07.29.06) and never delegated.
	Suffix = "pilot.internal"

	// MaxName is the length of the longest petname.
	MaxName = 32
)

// reservedNames have a meaning of their own to resolvers, to cloud images or
// to the command line, so that a peer of that name would be taken for them.
var reservedNames = []string{
	"all", "any", "broadcasthost", "dns", "gateway", "host", "instance-data", "internal",
	"ip6-allhosts", "ip6-allnodes", "ip6-allrouters", "ip6-localhost", "ip6-localnet", "ip6-loopback",
	"ip6-mcastprefix", "isatap", "kubernetes", "local", "localdomain", "localhost", "localhost4",
	"localhost6", "localnet", "loopback", "me", "metadata", "none", "pilot", "router", "self", "wpad",
}

// ValidName checks a petname: one DNS label in lower case of at most MaxName
// letters, digits and inner hyphens. It refuses names that mean something
// else: reserved ones, numbers (resolvers read "8080" and "0x7f" as IPv4
// addresses), labels with hyphens in third and fourth place (punycode, which
// shows as other characters), and whatever has the form of a fingerprint.
func ValidName(s string) error {
	if len(s) == 0 || len(s) > MaxName {
		return fmt.Errorf("ipam: name of %d characters: want 1 to %d", len(s), MaxName)
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("ipam: name %q: want lower-case letters, digits and hyphens", s)
		}
	}
	switch {
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("ipam: name %q: begins or ends with a hyphen", s)
	case len(s) >= 4 && s[2:4] == "--":
		return fmt.Errorf("ipam: name %q: hyphens in third and fourth place are reserved", s)
	case looksNumeric(s):
		return fmt.Errorf("ipam: name %q: would be read as a number", s)
	case looksFingerprint(s):
		return fmt.Errorf("ipam: name %q: has the form of a fingerprint", s)
	case slices.Contains(reservedNames, s):
		return fmt.Errorf("ipam: name %q: is reserved", s)
	}
	return nil
}

// looksNumeric reports whether inet_aton would take s for an IPv4 address.
func looksNumeric(s string) bool {
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(s, "0123456789") == ""
}

// looksFingerprint reports whether s has the length and the alphabet of a
// fingerprint. Mistyped ones count, so that they are reported as such.
func looksFingerprint(s string) bool {
	return len(s) == 26 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
