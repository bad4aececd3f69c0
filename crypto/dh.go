package crypto

import (
	"bytes"
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

// fieldPrime is 2^255 - 19, little-endian like every X25519 coordinate.
var fieldPrime = [32]byte{0: 0xed, 1: 0xff, 2: 0xff, 3: 0xff, 4: 0xff, 5: 0xff, 6: 0xff, 7: 0xff,
	8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff,
	16: 0xff, 17: 0xff, 18: 0xff, 19: 0xff, 20: 0xff, 21: 0xff, 22: 0xff, 23: 0xff,
	24: 0xff, 25: 0xff, 26: 0xff, 27: 0xff, 28: 0xff, 29: 0xff, 30: 0xff, 31: 0x7f}

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

func (k DHPublic) check() error {
	big, prime := k, fieldPrime
	slices.Reverse(big[:])
	slices.Reverse(prime[:])
	if bytes.Compare(big[:], prime[:]) >= 0 {
		return errNotCanonical
	}
	// The private key does not matter: a point of low order gives zero under all.
	if _, err := probePair.dh(k); err != nil {
		return errSmallOrder
	}
	return nil
}

// probePair is used to test the order of points, never to agree on a secret.
var probePair = newKeyPair(DHPrivate{1})

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
