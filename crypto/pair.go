package crypto

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// PairSecret is R: what two agents share after a request and its grant. All
// symmetric keys of their tunnel come from it.
type PairSecret [32]byte

// NewPairSecret derives R from the 32 random bytes that each statement carried
// and binds it to both statements by the SHA-256 of their bodies:
// HKDF-Extract(salt = SHA-256(requestHash || grantHash), requestRandom || grantRandom).
func NewPairSecret(requestHash, grantHash, requestRandom, grantRandom [32]byte) PairSecret {
	salt := sha256.Sum256(append(requestHash[:], grantHash[:]...))
	secret, err := hkdf.Extract(sha256.New, append(requestRandom[:], grantRandom[:]...), salt[:])
	if err != nil {
		panic("crypto: HKDF: " + err.Error())
	}
	return PairSecret(secret)
}

// Format prints a placeholder whatever the verb, so that no log shows the secret.
func (s PairSecret) Format(f fmt.State, _ rune) { fmt.Fprint(f, "crypto.PairSecret(secret)") }

// PairConfig is one generation of what two agents share.
type PairConfig struct {
	Local, Remote         PublicKey // identities
	LocalAddr, RemoteAddr [6]byte   // 48-bit addresses
	Static                DHPrivate // made for this peer
	RemoteStatic          DHPublic  // the peer's, made for us
	Secret                PairSecret
}

// Pair makes and answers tunnel handshakes with one peer under one pair
// secret. It never changes, but for what it keeps of the first, and is safe for
// concurrent use.
type Pair struct {
	static       keyPair
	remoteStatic DHPublic
	ss           atomic.Pointer[[32]byte] // of both static keys, the same in every handshake; computed by the first
	outbound     pairKeys                 // handshakes that we initiate
	inbound      pairKeys                 // handshakes that the peer initiates
}

// pairKeys belong to one direction of a pair: to handshakes that one side starts.
type pairKeys struct {
	psk, tag, mac [32]byte
	prologue      [prologueSize]byte // without the INIT header, which comes last
}

const (
	prologueLabel = "pilot tunnel v1"
	prologueSize  = len(prologueLabel) + 1 + 32 + 32 + 6 + 6
)

// NewPair checks the configuration and derives the keys. The secret must not
// be zero: there is no tunnel without one.
func NewPair(c PairConfig) (*Pair, error) {
	if err := c.Local.check(); err != nil {
		return nil, fmt.Errorf("crypto: pair: local key: %w", err)
	}
	if err := c.Remote.check(); err != nil {
		return nil, fmt.Errorf("crypto: pair: remote key: %w", err)
	}
	if c.Local == c.Remote {
		return nil, errors.New("crypto: pair: the peer has our own key")
	}
	if err := c.RemoteStatic.check(); err != nil {
		return nil, fmt.Errorf("crypto: pair: remote static key: %w", err)
	}
	if c.Static.IsZero() || c.Secret == (PairSecret{}) {
		return nil, errors.New("crypto: pair: static key or secret is missing")
	}
	return &Pair{
		static:       newKeyPair(c.Static),
		remoteStatic: c.RemoteStatic,
		outbound:     derivePairKeys(c.Secret, c.Local, c.Remote, c.LocalAddr, c.RemoteAddr),
		inbound:      derivePairKeys(c.Secret, c.Remote, c.Local, c.RemoteAddr, c.LocalAddr),
	}, nil
}

func derivePairKeys(r PairSecret, initiator, responder PublicKey, addrI, addrR [6]byte) pairKeys {
	expand := func(label string) [32]byte {
		info := label + "\x00" + string(initiator[:]) + string(responder[:])
		key, err := hkdf.Expand(sha256.New, r[:], info, 32)
		if err != nil {
			panic("crypto: HKDF: " + err.Error())
		}
		return [32]byte(key)
	}
	k := pairKeys{
		psk: expand("pilot psk v1"),
		tag: expand("pilot tag v1"),
		mac: expand("pilot mac v1"),
	}
	copy(k.prologue[:], slices.Concat([]byte(prologueLabel+"\x00"), initiator[:], responder[:], addrI[:], addrR[:]))
	return k
}

// Knock tags change with the epoch; a receiver accepts EpochWindow epochs
// before and after its own, 24 hours each way.
const (
	EpochLength = 7200 * time.Second
	EpochWindow = 12
)

// Epoch returns the number of the two-hour epoch of a time, counted from 1970.
func Epoch(now time.Time) uint64 {
	return uint64(max(now.Unix(), 0)) / uint64(EpochLength/time.Second)
}

// InboundTag is the tag of the INITs that the peer sends to us in an epoch.
func (p *Pair) InboundTag(epoch uint64) uint64 { return p.inbound.knock(epoch) }

// OutboundTag is the tag of the INITs that we send to the peer in an epoch.
func (p *Pair) OutboundTag(epoch uint64) uint64 { return p.outbound.knock(epoch) }

func (k *pairKeys) knock(epoch uint64) uint64 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], epoch)
	m := hmac.New(sha256.New, k.tag[:])
	m.Write(b[:])
	return binary.BigEndian.Uint64(m.Sum(nil))
}

// appendMAC appends mac1: the HMAC of all of msg, cut to 16 bytes.
func (k *pairKeys) appendMAC(msg []byte) []byte {
	m := hmac.New(sha256.New, k.mac[:])
	m.Write(msg)
	return append(msg, m.Sum(nil)[:TagSize]...)
}

// checkMAC compares the last 16 bytes of msg in constant time.
func (k *pairKeys) checkMAC(msg []byte) bool {
	m := hmac.New(sha256.New, k.mac[:])
	m.Write(msg[:len(msg)-TagSize])
	return subtle.ConstantTimeCompare(m.Sum(nil)[:TagSize], msg[len(msg)-TagSize:]) == 1
}
