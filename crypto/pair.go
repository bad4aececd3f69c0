package crypto

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
// secret. It is immutable and safe for concurrent use.
type Pair struct {
	static       keyPair
	remoteStatic DHPublic
	outbound     pairKeys // handshakes that we initiate
	inbound      pairKeys // handshakes that the peer initiates
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

// handshake starts the Noise handshake that belongs to an INIT header.
func (p *Pair) handshake(k *pairKeys, initiator bool, header []byte, ephemeral *DHPrivate) (*Handshake, error) {
	h, err := newHandshake(HandshakeConfig{
		Pattern:      KKpsk0,
		Initiator:    initiator,
		Prologue:     slices.Concat(k.prologue[:], header[:initHeader]),
		RemoteStatic: &p.remoteStatic,
		PSK:          &k.psk,
		Ephemeral:    ephemeral,
	}, p.static)
	if err != nil {
		return nil, fmt.Errorf("crypto: tunnel: %w", err)
	}
	return h, nil
}

// InitPayload is what an initiator tells in INIT: 24 bytes, encrypted.
type InitPayload struct {
	Millis   uint64 // unix time in ms, 48 bits: orders the INITs of one pair
	Features uint16
	Instance uint64 // random at every start of the daemon: two of one key are noticed
	Head     uint64 // the sender's trust head; reserved
}

func (p InitPayload) encode() (b [payloadSize]byte, err error) {
	if p.Millis >= 1<<48 {
		return b, errors.New("crypto: tunnel: time does not fit 48 bits")
	}
	binary.BigEndian.PutUint64(b[:], p.Millis<<16|uint64(p.Features))
	binary.BigEndian.PutUint64(b[8:], p.Instance)
	binary.BigEndian.PutUint64(b[16:], p.Head)
	return b, nil
}

func parseInitPayload(b [payloadSize]byte) InitPayload {
	first := binary.BigEndian.Uint64(b[:])
	return InitPayload{
		Millis:   first >> 16,
		Features: uint16(first),
		Instance: binary.BigEndian.Uint64(b[8:]),
		Head:     binary.BigEndian.Uint64(b[16:]),
	}
}

// RespPayload is what a responder tells in RESP: 24 bytes, encrypted.
type RespPayload struct {
	Features uint32
	Observed netip.AddrPort // where INIT came from; zero when it came by relay
}

func (p RespPayload) encode() (b [payloadSize]byte, err error) {
	binary.BigEndian.PutUint32(b[:], p.Features)
	if p.Observed == (netip.AddrPort{}) {
		return b, nil
	}
	addr := p.Observed.Addr()
	if !addr.IsValid() || addr.Unmap().IsUnspecified() || p.Observed.Port() == 0 {
		return b, fmt.Errorf("crypto: tunnel: observed source %s is no source", p.Observed)
	}
	ip := addr.As16()
	copy(b[4:], ip[:])
	binary.BigEndian.PutUint16(b[20:], p.Observed.Port())
	return b, nil
}

func parseRespPayload(b [payloadSize]byte) (RespPayload, error) {
	p := RespPayload{Features: binary.BigEndian.Uint32(b[:])}
	addr, port := netip.AddrFrom16([16]byte(b[4:20])).Unmap(), binary.BigEndian.Uint16(b[20:])
	if b[22] != 0 || b[23] != 0 {
		return RespPayload{}, ErrAuth
	}
	if [18]byte(b[4:22]) == [18]byte{} {
		return p, nil
	}
	if addr.IsUnspecified() || port == 0 {
		return RespPayload{}, ErrAuth
	}
	p.Observed = netip.AddrPortFrom(addr, port)
	return p, nil
}

// Initiation is a handshake that we began: one INIT and the state that its RESP
// needs. It is not safe for concurrent use.
type Initiation struct {
	keys      *pairKeys
	index     uint32
	message   [InitSize]byte
	handshake *Handshake // nil once completed
}

// Initiate makes an INIT with a fresh ephemeral key. The index is ours, random
// and not in use; the tag is that of the epoch of now, and so is Millis if it
// is zero.
func (p *Pair) Initiate(now time.Time, index uint32, in InitPayload) (*Initiation, error) {
	return p.initiate(now, index, in, nil)
}

func (p *Pair) initiate(now time.Time, index uint32, in InitPayload, ephemeral *DHPrivate) (*Initiation, error) {
	if in.Millis == 0 {
		in.Millis = uint64(max(now.UnixMilli(), 0))
	}
	payload, err := in.encode()
	if err != nil {
		return nil, err
	}
	i := &Initiation{keys: &p.outbound, index: index}
	putInitHeader(i.message[:], index, p.OutboundTag(Epoch(now)))
	if i.handshake, err = p.handshake(i.keys, true, i.message[:], ephemeral); err != nil {
		return nil, err
	}
	msg, err := i.handshake.Write(i.message[:initHeader], payload[:])
	if err != nil {
		return nil, err
	}
	i.keys.appendMAC(msg)
	return i, nil
}

// Message returns the INIT, to be sent on any number of paths and again.
func (i *Initiation) Message() []byte { return i.message[:] }

// Index returns our index.
func (i *Initiation) Index() uint32 { return i.index }

// Complete reads the RESP. An error changes nothing: a forged RESP does not
// keep the real one from being read. After success the initiation is used up
// and returns ErrClosed, so that a RESP that arrives twice cannot give the
// same keys twice.
func (i *Initiation) Complete(msg []byte) (RespPayload, Keys, uint32, error) {
	fail := func(err error) (RespPayload, Keys, uint32, error) { return RespPayload{}, Keys{}, 0, err }
	if i.handshake == nil {
		return fail(ErrClosed)
	}
	sender, receiver, ok := RespHeader(msg)
	if !ok || receiver != i.index || !i.keys.checkMAC(msg) {
		return fail(ErrAuth)
	}
	h := i.handshake.Clone()
	var buf [payloadSize]byte
	if _, err := h.Read(buf[:0], msg[respHeader:respMAC]); err != nil {
		return fail(err)
	}
	payload, err := parseRespPayload(buf)
	if err != nil {
		return fail(err)
	}
	keys, err := h.Split()
	if err != nil {
		return fail(err)
	}
	i.handshake.wipe()
	i.handshake = nil
	return payload, keys, sender, nil
}

// CheckInit reports whether mac1 of an INIT was made by the peer, in constant
// time. It costs two hashes of the message and no DH.
func (p *Pair) CheckInit(msg []byte) bool {
	_, _, ok := InitHeader(msg)
	return ok && p.inbound.checkMAC(msg)
}

// Respond reads an INIT and makes the RESP. The index is ours. Every call draws
// a fresh ephemeral key, so an INIT that arrives twice gives other keys; the
// keys mean nothing until a DATA frame under them has been opened.
func (p *Pair) Respond(msg []byte, index uint32, r RespPayload) (resp []byte, in InitPayload, keys Keys, err error) {
	return p.respond(msg, index, r, nil)
}

func (p *Pair) respond(msg []byte, index uint32, r RespPayload, ephemeral *DHPrivate) ([]byte, InitPayload, Keys, error) {
	fail := func(err error) ([]byte, InitPayload, Keys, error) { return nil, InitPayload{}, Keys{}, err }
	if !p.CheckInit(msg) {
		return fail(ErrAuth)
	}
	payload, err := r.encode()
	if err != nil {
		return fail(err)
	}
	h, err := p.handshake(&p.inbound, false, msg, ephemeral)
	if err != nil {
		return fail(err)
	}
	var buf [payloadSize]byte
	if _, err := h.Read(buf[:0], msg[initHeader:initMAC]); err != nil {
		return fail(err)
	}
	sender, _, _ := InitHeader(msg)
	resp := make([]byte, respHeader, RespSize)
	putRespHeader(resp, index, sender)
	if resp, err = h.Write(resp, payload[:]); err != nil {
		return fail(err)
	}
	keys, err := h.Split()
	if err != nil {
		return fail(err)
	}
	return p.inbound.appendMAC(resp), parseInitPayload(buf), keys, nil
}
