package crypto

import (
	"crypto/hpke"
	"fmt"
)

// SealOverhead is how much longer a sealed message is than its plaintext: the
// encapsulated key (1088 bytes of ML-KEM-768, 32 of X25519) and the GCM tag.
const SealOverhead = 1088 + 32 + 16

// SealPublic is an HPKE public key of the KEM MLKEM768-X25519 (X-Wing): the
// 1184 bytes of ML-KEM-768, then the 32 of X25519.
type SealPublic [1216]byte

// SealPrivate opens what was sealed to its public key. The zero value opens nothing.
type SealPrivate struct {
	key    hpke.PrivateKey
	public SealPublic
}

func sealSuite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.MLKEM768X25519(), hpke.HKDFSHA256(), hpke.AES256GCM()
}

// NewSealPrivate returns the key of a seed: the 32-byte private key of X-Wing.
// Equal seeds give equal keys.
func NewSealPrivate(seed [32]byte) (SealPrivate, error) {
	kem, _, _ := sealSuite()
	key, err := kem.NewPrivateKey(seed[:])
	if err != nil {
		return SealPrivate{}, fmt.Errorf("crypto: sealing key: %w", err)
	}
	return SealPrivate{key, SealPublic(key.PublicKey().Bytes())}, nil
}

// Public returns the key that senders seal to.
func (k SealPrivate) Public() SealPublic { return k.public }

// Format prints a placeholder whatever the verb, so that no log shows the key.
func (k SealPrivate) Format(f fmt.State, _ rune) { fmt.Fprint(f, "crypto.SealPrivate(secret)") }

// Open returns the plaintext of a message that was sealed to k with the same
// info. Success says nothing about who sealed it: sign inside.
func (k SealPrivate) Open(info string, sealed []byte) ([]byte, error) {
	if k.key == nil {
		return nil, fmt.Errorf("crypto: open sealed message: %w", ErrClosed)
	}
	if len(sealed) < SealOverhead {
		return nil, fmt.Errorf("crypto: open sealed message: %w", ErrAuth)
	}
	_, kdf, aead := sealSuite()
	plaintext, err := hpke.Open(k.key, kdf, aead, []byte(info), sealed)
	if err != nil {
		return nil, fmt.Errorf("crypto: open sealed message: %w", ErrAuth)
	}
	return plaintext, nil
}

// ParseSealPublic reads a key of 1216 bytes. The ML-KEM part must be reduced
// (FIPS 203, 7.2) and the X25519 part must pass ParseDHPublic.
func ParseSealPublic(b []byte) (SealPublic, error) {
	var k SealPublic
	if len(b) != len(k) {
		return SealPublic{}, fmt.Errorf("crypto: sealing key: %d bytes, want %d", len(b), len(k))
	}
	copy(k[:], b)
	if _, err := k.parse(); err != nil {
		return SealPublic{}, err
	}
	return k, nil
}

func (k *SealPublic) parse() (hpke.PublicKey, error) {
	if _, err := ParseDHPublic(k[1184:]); err != nil {
		return nil, fmt.Errorf("crypto: sealing key: %w", err)
	}
	kem, _, _ := sealSuite()
	key, err := kem.NewPublicKey(k[:])
	if err != nil {
		return nil, fmt.Errorf("crypto: sealing key: %w", err)
	}
	return key, nil
}

// IsZero reports whether k is the zero value, which is no key.
func (k SealPublic) IsZero() bool { return k == SealPublic{} }

// Seal encrypts plaintext so that only the holder of k's private key can read
// it, by single-shot HPKE in base mode (RFC 9180, 6.1): encapsulated key ||
// ciphertext. Info separates uses; both sides must name the same one.
func (k SealPublic) Seal(info string, plaintext []byte) ([]byte, error) {
	key, err := k.parse()
	if err != nil {
		return nil, err
	}
	_, kdf, aead := sealSuite()
	sealed, err := hpke.Seal(key, kdf, aead, []byte(info), plaintext)
	if err != nil {
		return nil, fmt.Errorf("crypto: seal: %w", err)
	}
	return sealed, nil
}
