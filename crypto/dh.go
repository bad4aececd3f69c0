package crypto

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
)

// DHPublic is an X25519 public key: a tunnel static, a registration key, or
// the key of a server. The zero value is no key.
type DHPublic [32]byte

// DHPrivate is an X25519 private key: any 32 bytes, clamped when used. The
// zero value is taken as "no key" wherever a key is required.
type DHPrivate [32]byte

// GenerateDH makes a new key from the system's random source.
func GenerateDH() (DHPrivate, error) {
	var k DHPrivate
	if _, err := rand.Read(k[:]); err != nil {
		return DHPrivate{}, fmt.Errorf("crypto: new X25519 key: %w", err)
	}
	return k, nil
}

// Public computes the public key; it costs one scalar multiplication.
func (k DHPrivate) Public() DHPublic { return newKeyPair(k).public }

// IsZero reports whether k is the zero value.
func (k DHPrivate) IsZero() bool { return k == DHPrivate{} }

// Format prints a placeholder whatever the verb, so that no log shows the key.
func (k DHPrivate) Format(f fmt.State, _ rune) { fmt.Fprint(f, "crypto.DHPrivate(secret)") }

// ParseDHPublic reads a key of 32 bytes. It refuses coordinates that are not
// reduced and the points of low order, with which every shared secret is zero.
func ParseDHPublic(b []byte) (DHPublic, error) {
	var k DHPublic
	if len(b) != len(k) {
		return DHPublic{}, fmt.Errorf("crypto: X25519 key: %d bytes, want %d", len(b), len(k))
	}
	copy(k[:], b)
	if err := k.check(); err != nil {
		return DHPublic{}, fmt.Errorf("crypto: X25519 key: %w", err)
	}
	return k, nil
}

// ParseDHPublicText reads a key of 52 base32 characters.
func ParseDHPublicText(s string) (DHPublic, error) {
	var raw [32]byte
	if err := decodeText(raw[:], s); err != nil {
		return DHPublic{}, fmt.Errorf("crypto: X25519 key: %w", err)
	}
	return ParseDHPublic(raw[:])
}

// lowOrder lists the reduced coordinates of the points of low order, of the
// curve and of its twist: 0, 1, the two of order 8, and p-1.
var lowOrder = [5]DHPublic{
	{},
	{1},
	{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
		0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
	{0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
		0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57},
	{0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
}

func (k DHPublic) check() error {
	if !k.reduced() {
		return errNotCanonical
	}
	if slices.Contains(lowOrder[:], k) {
		return errSmallOrder
	}
	return nil
}

// reduced reports whether k, little-endian, is below 2^255 - 19.
func (k DHPublic) reduced() bool {
	if k[31] != 0x7f {
		return k[31] < 0x7f
	}
	for _, b := range k[1:31] {
		if b != 0xff {
			return true
		}
	}
	return k[0] < 0xed
}

// IsZero reports whether k is the zero value, which is no key.
func (k DHPublic) IsZero() bool { return k == DHPublic{} }

// String returns the key as 52 base32 characters.
func (k DHPublic) String() string { return encodeText(k[:]) }

// MarshalText returns the text of String; the zero value has the empty text.
func (k DHPublic) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return []byte{}, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText is the inverse of MarshalText and checks as ParseDHPublic does.
func (k *DHPublic) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = DHPublic{}
		return nil
	}
	parsed, err := ParseDHPublicText(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// keyPair is a private key with its public key computed once: crypto/ecdh
// multiplies the base point each time a private key is parsed.
type keyPair struct {
	private *ecdh.PrivateKey
	public  DHPublic
}

func newKeyPair(k DHPrivate) keyPair {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		// The length is right by type, so only GODEBUG=fips140=only gets here.
		panic("crypto: X25519 is not available: " + err.Error())
	}
	return keyPair{private, DHPublic(private.PublicKey().Bytes())}
}

var errLowOrder = errors.New("crypto: X25519: remote key of low order")

// dh returns the shared secret, or an error if it would be zero.
func (p keyPair) dh(remote DHPublic) ([32]byte, error) {
	public, err := ecdh.X25519().NewPublicKey(remote[:])
	if err != nil {
		return [32]byte{}, errLowOrder
	}
	secret, err := p.private.ECDH(public)
	if err != nil {
		return [32]byte{}, errLowOrder
	}
	return [32]byte(secret), nil
}
