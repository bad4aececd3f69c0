package crypto

import (
	"fmt"
	"slices"
	"time"
)

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
	h.ss = &p.ss
	return h, nil
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
