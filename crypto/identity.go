package crypto

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"filippo.io/edwards25519"
)

// SignatureSize is the length of a signature in bytes.
const SignatureSize = ed25519.SignatureSize

// PublicKey is the identity of an agent: an Ed25519 public key. It is
// comparable, so it keys maps. The zero value is no key; it is also the
// encoding of a point of small order and is refused by every parser.
type PublicKey [32]byte

// ParsePublicKey reads a key of 32 bytes. It refuses what ed25519.Verify
// accepts but no honest key pair has: encodings that are not canonical (a
// second spelling of a key would be a second identity) and the eight points
// of small order (under such a key one fixed signature verifies many messages).
func ParsePublicKey(b []byte) (PublicKey, error) {
	var k PublicKey
	if len(b) != len(k) {
		return PublicKey{}, fmt.Errorf("crypto: public key: %d bytes, want %d", len(b), len(k))
	}
	copy(k[:], b)
	if err := k.check(); err != nil {
		return PublicKey{}, fmt.Errorf("crypto: public key: %w", err)
	}
	return k, nil
}

var (
	errNotOnCurve   = errors.New("not a point of the curve")
	errNotCanonical = errors.New("encoding is not canonical")
	errSmallOrder   = errors.New("point of small order")
)

func (k PublicKey) check() error {
	p, err := new(edwards25519.Point).SetBytes(k[:])
	if err != nil {
		return errNotOnCurve
	}
	if !bytes.Equal(p.Bytes(), k[:]) {
		return errNotCanonical
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return errSmallOrder
	}
	return nil
}

// IsZero reports whether k is the zero value, which is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// Compare orders keys as byte strings. The order decides ties between two
// agents (crossing requests, simultaneous handshakes); it means nothing else.
func (k PublicKey) Compare(o PublicKey) int { return bytes.Compare(k[:], o[:]) }

// String returns the text of the fingerprint, for people and for logs. It does
// not determine the key: programs use MarshalText.
func (k PublicKey) String() string { return k.Fingerprint().String() }

// MarshalText returns the whole key in base32, 52 characters. Like the zero
// netip.Addr, the zero key has the empty text.
func (k PublicKey) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return []byte{}, nil
	}
	return []byte(encodeText(k[:])), nil
}

// UnmarshalText is the inverse of MarshalText and checks as ParsePublicKey does.
func (k *PublicKey) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = PublicKey{}
		return nil
	}
	var raw [len(k)]byte
	if err := decodeText(raw[:], string(text)); err != nil {
		return fmt.Errorf("crypto: public key: %w", err)
	}
	parsed, err := ParsePublicKey(raw[:])
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// Verify reports whether sig is k's signature of body in the named context.
// It checks k again, because a PublicKey may be made without a parser, and
// always says false for a key that ParsePublicKey would refuse.
func (k PublicKey) Verify(context string, body, sig []byte) bool {
	if len(sig) != SignatureSize || k.check() != nil {
		return false
	}
	return ed25519.Verify(k[:], signedBytes(context, body), sig)
}

// signedBytes is what a signature covers: context || 0x00 || body. Contexts
// are constants without a zero byte, so no two of them can be confused.
func signedBytes(context string, body []byte) []byte {
	b := make([]byte, 0, len(context)+1+len(body))
	b = append(b, context...)
	b = append(b, 0)
	return append(b, body...)
}

// Fingerprint is the short name of a key that people exchange: the first 128
// bits of SHA-256("pilot id v1" || key). Finding a second key with the
// fingerprint of a given one takes 2^128 work, so it authenticates.
type Fingerprint [16]byte

// Fingerprint returns the fingerprint of k.
func (k PublicKey) Fingerprint() Fingerprint {
	sum := sha256.Sum256(append([]byte("pilot id v1"), k[:]...))
	return Fingerprint(sum[:16])
}

// ParseFingerprint reads 26 base32 characters.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	if err := decodeText(f[:], s); err != nil {
		return Fingerprint{}, fmt.Errorf("crypto: fingerprint: %w", err)
	}
	return f, nil
}

// IsZero reports whether f is the zero value.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// String returns the fingerprint as 26 base32 characters.
func (f Fingerprint) String() string { return encodeText(f[:]) }

// MarshalText returns the text of String.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	parsed, err := ParseFingerprint(string(text))
	if err != nil {
		return err
	}
	*f = parsed
	return nil
}

// PrivateKey is the secret half of an identity. It prints as its fingerprint.
type PrivateKey struct {
	seed   [32]byte
	public PublicKey
}

// GenerateKey makes a new identity from the system's random source.
func GenerateKey() (PrivateKey, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("crypto: new identity: %w", err)
	}
	return NewPrivateKey(seed), nil
}

// NewPrivateKey returns the key of an RFC 8032 seed. Equal seeds give equal keys.
func NewPrivateKey(seed [32]byte) PrivateKey {
	k := ed25519.NewKeyFromSeed(seed[:])
	return PrivateKey{seed: seed, public: PublicKey(k[32:])}
}

// Seed returns the seed, for the identity file.
func (k PrivateKey) Seed() [32]byte { return k.seed }

// Public returns the public key.
func (k PrivateKey) Public() PublicKey { return k.public }

// IsZero reports whether k is the zero value, which signs nothing that verifies.
func (k PrivateKey) IsZero() bool { return k.public.IsZero() }

// Sign returns the 64-byte signature of body in the named context. The
// signature is deterministic.
func (k PrivateKey) Sign(context string, body []byte) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(k.seed[:]), signedBytes(context, body))
}

// Format prints the fingerprint whatever the verb, so that no log shows a seed.
func (k PrivateKey) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "crypto.PrivateKey(%s)", k.public)
}
