package ipam

import (
	"fmt"
	"strings"

	"github.com/pilotnet/pilot/crypto"
)

// Contact is what an agent gives to those who may write to it. The fingerprint
// authenticates the card that Host hands out; the address only shows early
// whom it is about. It is comparable.
type Contact struct {
	Addr        Addr
	Fingerprint crypto.Fingerprint
	Host        string // a home server: lower-case name or canonical IP address, without brackets
	Port        uint16
}

// ParseContact reads ADDRESS#FINGERPRINT@HOST[:PORT]. Upper case is accepted;
// the port defaults to crypto.DefaultPort.
func ParseContact(s string) (Contact, error) {
	address, rest, ok := strings.Cut(s, "#")
	fingerprint, where, at := strings.Cut(rest, "@")
	if !ok || !at {
		return Contact{}, fmt.Errorf("ipam: contact %q: want ADDRESS#FINGERPRINT@HOST[:PORT]", clip(s))
	}
	var c Contact
	var err error
	if c.Addr, err = ParseAddr(address); err != nil {
		return Contact{}, fmt.Errorf("ipam: contact: %w", err)
	}
	if !c.Addr.Valid() {
		return Contact{}, fmt.Errorf("ipam: contact: address %s is reserved", c.Addr)
	}
	if c.Fingerprint, err = crypto.ParseFingerprint(fingerprint); err != nil {
		return Contact{}, fmt.Errorf("ipam: contact: %w", err)
	}
	if c.Host, c.Port, err = splitHostPort(where); err != nil {
		return Contact{}, fmt.Errorf("ipam: contact: %w", err)
	}
	return c, nil
}

// server is the home server of the contact; its key is in the card.
func (c Contact) server() crypto.Server { return crypto.Server{Host: c.Host, Port: c.Port} }

// String returns the canonical text, without the port if it is the default.
func (c Contact) String() string {
	where, _, _ := strings.Cut(c.server().String(), "#")
	return c.Addr.String() + "#" + c.Fingerprint.String() + "@" + where
}

// HostPort returns HOST:PORT as net.Dial wants it.
func (c Contact) HostPort() string { return c.server().HostPort() }

// MarshalText returns the text of String.
func (c Contact) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseContact.
func (c *Contact) UnmarshalText(text []byte) error {
	parsed, err := ParseContact(string(text))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

// splitHostPort reads HOST[:PORT] by the rules of crypto.ParseServer, so that
// what a contact says can be compared with the servers in a card. It lends
// the text a key, the base point of X25519, since a server is not named without one.
func splitHostPort(s string) (host string, port uint16, err error) {
	if strings.Contains(s, "#") {
		return "", 0, fmt.Errorf("host %q: want HOST[:PORT]", clip(s))
	}
	server, err := crypto.ParseServer(s + "#" + crypto.DHPublic{9}.String())
	if err != nil {
		return "", 0, err
	}
	return server.Host, server.Port, nil
}
