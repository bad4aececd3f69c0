package crypto

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// Pattern is one of the Noise handshake patterns that Pilot uses, always as
// Noise_<pattern>_25519_AESGCM_SHA256.
type Pattern uint8

// The patterns, in the notation of the Noise specification (revision 34, 7.5
// and 9). A peer-to-peer tunnel is KKpsk0; an agent at its home server is the
// initiator of IK; a visitor at somebody else's is the initiator of NK. KK is
// there for the published vectors.
const (
	KK     Pattern = iota + 1 // -> s, <- s, ...; -> e, es, ss; <- e, ee, se
	KKpsk0                    // -> s, <- s, ...; -> psk, e, es, ss; <- e, ee, se
	IK                        // <- s, ...; -> e, es, s, ss; <- e, ee, se
	NK                        // <- s, ...; -> e, es; <- e, ee
)

type token uint8

const (
	tokenE token = iota
	tokenS
	tokenEE
	tokenES // initiator's ephemeral, responder's static
	tokenSE // initiator's static, responder's ephemeral
	tokenSS
	tokenPSK
)

// patternSpec is the table form of a pattern. All of Pilot's patterns have two
// messages and a responder whose static key is known beforehand.
type patternSpec struct {
	name      string
	knownInit bool // the initiator's static key is known beforehand
	psk       bool
	messages  [2][]token
}

var patternSpecs = map[Pattern]patternSpec{
	KK: {"KK", true, false, [2][]token{{tokenE, tokenES, tokenSS}, {tokenE, tokenEE, tokenSE}}},
	KKpsk0: {"KKpsk0", true, true,
		[2][]token{{tokenPSK, tokenE, tokenES, tokenSS}, {tokenE, tokenEE, tokenSE}}},
	IK: {"IK", false, false, [2][]token{{tokenE, tokenES, tokenS, tokenSS}, {tokenE, tokenEE, tokenSE}}},
	NK: {"NK", false, false, [2][]token{{tokenE, tokenES}, {tokenE, tokenEE}}},
}

// sendsStatic reports whether the initiator proves a static key at all.
func (s patternSpec) sendsStatic() bool { return s.name != "NK" }

// String returns the name of the pattern, such as "KKpsk0".
func (p Pattern) String() string { return patternSpecs[p].name }

// HandshakeConfig says which side of which handshake this is. A key that the
// pattern needs and that is missing is an error, and so is one that it does not
// use: neither is ever replaced by a default.
type HandshakeConfig struct {
	Pattern      Pattern
	Initiator    bool
	Prologue     []byte     // both sides must have the same; may be empty
	Static       *DHPrivate // our static key; nil for the initiator of NK
	RemoteStatic *DHPublic  // the peer's; nil for the responder of IK and NK
	PSK          *[32]byte  // for KKpsk0 only; not all zero
	Ephemeral    *DHPrivate // nil except in tests: fresh from the system's random source
}

// Handshake is one side of a Noise handshake. It is not safe for concurrent use.
//
// Write and Read work on a copy of the state and commit it on success: after
// an error the handshake is where it was, and a forged message cannot stop
// the real one from being read.
type Handshake struct {
	spec      patternSpec
	initiator bool
	static    keyPair
	ephemeral keyPair
	remote    DHPublic // static
	remoteE   DHPublic
	psk       [32]byte
	ss        *atomic.Pointer[[32]byte] // keeps what "ss" gives, for the next handshake; nil: nobody does
	testE     *DHPrivate
	next      int // messages done
	closed    bool
	sym       symmetricState
}

var errPattern = errors.New("unknown pattern")

// NewHandshake checks the configuration and starts a handshake.
func NewHandshake(c HandshakeConfig) (*Handshake, error) {
	var static keyPair
	if c.Static != nil {
		if c.Static.IsZero() {
			return nil, errors.New("crypto: noise: static key is zero")
		}
		static = newKeyPair(*c.Static)
	}
	h, err := newHandshake(c, static)
	if err != nil {
		return nil, fmt.Errorf("crypto: noise: %w", err)
	}
	return h, nil
}

// newHandshake takes the static key pair apart from the configuration, for
// callers that keep it with its public key computed.
func newHandshake(c HandshakeConfig, static keyPair) (*Handshake, error) {
	spec, ok := patternSpecs[c.Pattern]
	if !ok {
		return nil, errPattern
	}
	if need := !c.Initiator || spec.sendsStatic(); need != (static.private != nil) {
		return nil, fmt.Errorf("%s: static key: need one: %t", spec.name, need)
	}
	if need := c.Initiator || spec.knownInit; need != (c.RemoteStatic != nil) {
		return nil, fmt.Errorf("%s: remote static key: need one: %t", spec.name, need)
	}
	if spec.psk != (c.PSK != nil) {
		return nil, fmt.Errorf("%s: pre-shared key: need one: %t", spec.name, spec.psk)
	}
	h := &Handshake{spec: spec, initiator: c.Initiator, static: static, testE: c.Ephemeral}
	if c.PSK != nil {
		if h.psk = *c.PSK; h.psk == [32]byte{} {
			return nil, fmt.Errorf("%s: pre-shared key is zero", spec.name)
		}
	}
	if c.RemoteStatic != nil {
		h.remote = *c.RemoteStatic
		if err := h.remote.check(); err != nil {
			return nil, fmt.Errorf("remote static key: %w", err)
		}
	}
	h.sym.start("Noise_" + spec.name + "_25519_AESGCM_SHA256")
	h.sym.mixHash(c.Prologue)
	ours, theirs := &h.static.public, &h.remote
	if !h.initiator {
		ours, theirs = theirs, ours
	}
	if spec.knownInit {
		h.sym.mixHash(ours[:])
	}
	h.sym.mixHash(theirs[:])
	return h, nil
}

var (
	errTurn    = errors.New("crypto: noise: out of turn")
	errNotDone = errors.New("crypto: noise: handshake is not finished")
)

// maxNoiseMessage is the limit of the Noise specification, 3.
const maxNoiseMessage = 65535

// Write appends the next message with the payload to dst.
func (h *Handshake) Write(dst, payload []byte) ([]byte, error) {
	if h.closed {
		return nil, ErrClosed
	}
	if h.Done() || (h.next == 0) != h.initiator {
		return nil, errTurn
	}
	c := *h
	out := dst
	for _, t := range c.spec.messages[c.next] {
		switch t {
		case tokenE:
			if err := c.newEphemeral(); err != nil {
				return nil, err
			}
			out = append(out, c.ephemeral.public[:]...)
			c.mixEphemeral(c.ephemeral.public)
		case tokenS:
			out = c.sym.encryptAndHash(out, c.static.public[:])
		default:
			if err := c.mix(t); err != nil {
				return nil, err
			}
		}
	}
	out = c.sym.encryptAndHash(out, payload)
	if len(out)-len(dst) > maxNoiseMessage {
		return nil, ErrTooLong
	}
	c.next++
	*h = c
	return out, nil
}

// Read checks the next message and appends its payload to dst. In IK the
// responder learns the initiator's static key here.
func (h *Handshake) Read(dst, msg []byte) ([]byte, error) {
	if h.closed {
		return nil, ErrClosed
	}
	if h.Done() || (h.next == 0) == h.initiator {
		return nil, errTurn
	}
	if len(msg) > maxNoiseMessage {
		return nil, ErrTooLong
	}
	c := *h
	for _, t := range c.spec.messages[c.next] {
		switch t {
		case tokenE:
			if len(msg) < len(c.remoteE) {
				return nil, ErrAuth
			}
			c.remoteE, msg = DHPublic(msg[:32]), msg[32:]
			c.mixEphemeral(c.remoteE)
		case tokenS:
			if len(msg) < 32+TagSize {
				return nil, ErrAuth
			}
			s, err := c.sym.decryptAndHash(nil, msg[:32+TagSize])
			if err != nil {
				return nil, err
			}
			if c.remote, err = ParseDHPublic(s); err != nil {
				return nil, err
			}
			msg = msg[32+TagSize:]
		default:
			if err := c.mix(t); err != nil {
				return nil, err
			}
		}
	}
	out, err := c.sym.decryptAndHash(dst, msg)
	if err != nil {
		return nil, err
	}
	c.next++
	*h = c
	return out, nil
}

func (h *Handshake) newEphemeral() error {
	var e DHPrivate
	if h.testE != nil {
		e = *h.testE
	} else if _, err := rand.Read(e[:]); err != nil {
		return fmt.Errorf("crypto: noise: ephemeral key: %w", err)
	}
	h.ephemeral = newKeyPair(e)
	return nil
}

// mixEphemeral is what both sides do with an "e": with a PSK in the pattern it
// is mixed into the key too (Noise 9.2).
func (h *Handshake) mixEphemeral(e DHPublic) {
	h.sym.mixHash(e[:])
	if h.spec.psk {
		h.sym.mixKey(e[:])
	}
}

// mix processes the tokens that carry no bytes.
func (h *Handshake) mix(t token) error {
	if t == tokenPSK {
		h.sym.mixKeyAndHash(h.psk[:])
		return nil
	}
	if t == tokenSS && h.ss != nil {
		if kept := h.ss.Load(); kept != nil {
			h.sym.mixKey(kept[:])
			return nil
		}
	}
	ours, theirs := h.ephemeral, h.remoteE
	if t == tokenSS || t == tokenSE && h.initiator || t == tokenES && !h.initiator {
		ours = h.static
	}
	if t == tokenSS || t == tokenES && h.initiator || t == tokenSE && !h.initiator {
		theirs = h.remote
	}
	secret, err := ours.dh(theirs)
	if err != nil {
		return err
	}
	if t == tokenSS && h.ss != nil {
		kept := secret // so that the others stay off the heap
		h.ss.Store(&kept)
	}
	h.sym.mixKey(secret[:])
	return nil
}

// Clone returns an independent copy. Two copies must not both Write with the
// same test ephemeral; with fresh ephemerals their keys differ.
func (h *Handshake) Clone() *Handshake { c := *h; return &c }

// RemoteStatic returns the peer's static key, as far as it is known.
func (h *Handshake) RemoteStatic() DHPublic { return h.remote }

// Hash returns the handshake hash, which is unique to this handshake once it is done.
func (h *Handshake) Hash() [32]byte { return h.sym.h }

// Done reports whether both messages have passed.
func (h *Handshake) Done() bool { return h.next == len(h.spec.messages) }

// Keys is what a finished handshake leaves: a key per direction and an exporter.
type Keys struct {
	Send, Recv [32]byte // the outputs of Noise Split, seen from this side
	Export     [32]byte // the third output of the same HKDF: bound to the handshake, used by no cipher
}

// Format prints a placeholder whatever the verb, so that no log shows a key.
func (k Keys) Format(f fmt.State, _ rune) { fmt.Fprint(f, "crypto.Keys(secret)") }

// Split returns the keys of a finished handshake and forgets all secrets: a
// second call fails, so that no key is ever put to use twice. Hash and
// RemoteStatic stay.
func (h *Handshake) Split() (Keys, error) {
	if h.closed {
		return Keys{}, ErrClosed
	}
	if !h.Done() {
		return Keys{}, errNotDone
	}
	var out [96]byte
	hkdfInto(out[:], h.sym.ck, nil)
	k := Keys{Send: [32]byte(out[:32]), Recv: [32]byte(out[32:64]), Export: [32]byte(out[64:])}
	if !h.initiator {
		k.Send, k.Recv = k.Recv, k.Send
	}
	clear(out[:])
	h.wipe()
	return k, nil
}

// wipe drops everything secret. What crypto/ecdh and crypto/aes hold inside
// cannot be cleared from here; it goes with the garbage.
func (h *Handshake) wipe() {
	h.closed = true
	h.static, h.ephemeral, h.testE = keyPair{}, keyPair{}, nil
	h.psk, h.ss = [32]byte{}, nil
	h.sym = symmetricState{h: h.sym.h}
}

// symmetricState is the object of that name in the Noise specification, 5.2,
// with its CipherState inside.
type symmetricState struct {
	ck, h  [32]byte
	key    [32]byte
	hasKey bool
	n      uint64
}

func (s *symmetricState) start(name string) {
	if len(name) <= len(s.h) {
		copy(s.h[:], name)
	} else {
		s.h = sha256.Sum256([]byte(name))
	}
	s.ck = s.h
}

func (s *symmetricState) mixHash(data []byte) {
	d := sha256.New()
	d.Write(s.h[:])
	d.Write(data)
	d.Sum(s.h[:0])
}

func (s *symmetricState) mixKey(material []byte) {
	var out [64]byte
	hkdfInto(out[:], s.ck, material)
	s.ck = [32]byte(out[:32])
	s.setKey([32]byte(out[32:]))
}

func (s *symmetricState) mixKeyAndHash(material []byte) {
	var out [96]byte
	hkdfInto(out[:], s.ck, material)
	s.ck = [32]byte(out[:32])
	s.mixHash(out[32:64])
	s.setKey([32]byte(out[64:]))
}

func (s *symmetricState) setKey(key [32]byte) { s.key, s.hasKey, s.n = key, true, 0 }

func (s *symmetricState) encryptAndHash(dst, plaintext []byte) []byte {
	start := len(dst)
	if s.hasKey {
		nonce := noiseNonce(s.n)
		dst = newGCM(s.key).Seal(dst, nonce[:], plaintext, s.h[:])
		s.n++
	} else {
		dst = append(dst, plaintext...)
	}
	s.mixHash(dst[start:])
	return dst
}

func (s *symmetricState) decryptAndHash(dst, ciphertext []byte) ([]byte, error) {
	if !s.hasKey {
		s.mixHash(ciphertext)
		return append(dst, ciphertext...), nil
	}
	h := s.h
	s.mixHash(ciphertext) // before Open: dst may overlap
	nonce := noiseNonce(s.n)
	out, err := newGCM(s.key).Open(dst, nonce[:], ciphertext, h[:])
	if err != nil {
		return nil, ErrAuth
	}
	s.n++
	return out, nil
}

// noiseNonce is the AESGCM nonce of Noise 12.4: 32 zero bits, then n big-endian.
func noiseNonce(n uint64) (nonce [12]byte) {
	binary.BigEndian.PutUint64(nonce[4:], n)
	return nonce
}

func newGCM(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err == nil {
		var aead cipher.AEAD
		if aead, err = cipher.NewGCM(block); err == nil {
			return aead
		}
	}
	panic("crypto: AES-256-GCM is not available: " + err.Error())
}

// hkdfInto fills out with HKDF(ck, material) of Noise 4.3, which is RFC 5869
// with ck as the salt and no info.
func hkdfInto(out []byte, ck [32]byte, material []byte) {
	b, err := hkdf.Key(sha256.New, material, ck[:], "", len(out))
	if err != nil {
		panic("crypto: HKDF: " + err.Error()) // only for lengths beyond 8160
	}
	copy(out, b)
	clear(b)
}
