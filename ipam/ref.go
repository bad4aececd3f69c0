package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/pilotnet/pilot/crypto"
)

// RefKind says how a Ref names a peer.
type RefKind uint8

// The ways to name a peer. An address and its ULA name the same agent, as do a
// petname and the same name under Suffix: each pair is one kind.
const (
	RefName        RefKind = iota + 1 // Ref.Name
	RefAddr                           // Ref.Addr
	RefFingerprint                    // Ref.Fingerprint
	RefContact                        // Ref.Contact, and its Addr and Fingerprint in the Ref as well
)

// String returns the kind in words.
func (k RefKind) String() string {
	switch k {
	case RefName:
		return "name"
	case RefAddr:
		return "address"
	case RefFingerprint:
		return "fingerprint"
	case RefContact:
		return "contact"
	}
	return fmt.Sprintf("RefKind(%d)", uint8(k))
}

// Ref is a peer as somebody named it. Who it is, only a trust book can say,
// except for a contact.
type Ref struct {
	Kind        RefKind
	Name        string
	Addr        Addr
	Fingerprint crypto.Fingerprint
	Contact     Contact
}

// ParseRef reads a petname, NAME.pilot.internal (with or without the last
// dot), an address, a ULA, a fingerprint or a contact, in either case. The
// form alone decides, not what peers exist:
//
//	with "#"                            contact
//	an IP address                       ULA, which must lie in the prefix
//	with ":"                            address
//	with "."                            NAME.pilot.internal
//	26 characters of base32             fingerprint
//	anything else                       petname
func ParseRef(s string) (Ref, error) {
	if s == "" {
		return Ref{}, errors.New("ipam: empty name: want a peer's name, address or contact")
	}
	// Only ASCII, before any lowering: U+212A lowers to the letter k.
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Ref{}, fmt.Errorf("ipam: name %q: want printable ASCII without spaces", clip(s))
	}
	lower := strings.ToLower(s)
	switch {
	case strings.Contains(s, "#"):
		c, err := ParseContact(s)
		if err != nil {
			return Ref{}, err
		}
		return Ref{Kind: RefContact, Addr: c.Addr, Fingerprint: c.Fingerprint, Contact: c}, nil
	case isIP(s):
		return parseULA(s)
	case strings.Contains(s, ":"):
		a, err := ParseAddr(s)
		if err != nil {
			return Ref{}, err
		}
		return Ref{Kind: RefAddr, Addr: a}, nil
	case strings.Contains(s, "."):
		name, ok := strings.CutSuffix(strings.TrimSuffix(lower, "."), "."+Suffix)
		if !ok {
			return Ref{}, fmt.Errorf("ipam: name %q: does not end in .%s", clip(s), Suffix)
		}
		return nameRef(name)
	case looksFingerprint(lower):
		f, err := crypto.ParseFingerprint(lower)
		if err != nil {
			return Ref{}, fmt.Errorf("ipam: %w", err)
		}
		return Ref{Kind: RefFingerprint, Fingerprint: f}, nil
	}
	return nameRef(lower)
}

func nameRef(name string) (Ref, error) {
	if err := ValidName(name); err != nil {
		return Ref{}, err
	}
	return Ref{Kind: RefName, Name: name}, nil
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func parseULA(s string) (Ref, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return Ref{}, fmt.Errorf("ipam: %w", err)
	}
	a, ok := FromULA(ip)
	if !ok {
		return Ref{}, fmt.Errorf("ipam: %s is not the address of an agent: those lie in %s", clip(s), Prefix())
	}
	return Ref{Kind: RefAddr, Addr: a}, nil
}

// String returns the canonical text of what was named, which ParseRef reads
// back: the petname, the address, the fingerprint or the contact.
func (r Ref) String() string {
	switch r.Kind {
	case RefName:
		return r.Name
	case RefAddr:
		return r.Addr.String()
	case RefFingerprint:
		return r.Fingerprint.String()
	case RefContact:
		return r.Contact.String()
	}
	return ""
}
