package crypto

import (
	"encoding/binary"
	"slices"
)

// TransportOverhead is what Transport.Seal adds: the counter and the GCM tag.
const TransportOverhead = 8 + TagSize

// MaxTransport is the longest plaintext of one transport message.
const MaxTransport = 1 << 16

// Transport protects what agents and servers tell each other after IK or NK,
// over a stream or in datagrams that may be lost: counter 8 || ciphertext ||
// tag 16, with the counter as the nonce, as in a Session. It has a session's
// limits and replay window, and is safe for concurrent use.
type Transport struct {
	send sendKey
	recv recvKey
}

// NewTransport makes the transport of a finished handshake. Never make two of
// the same keys: both would count from zero.
func NewTransport(k Keys) *Transport {
	t := new(Transport)
	t.send.init(k.Send)
	t.recv.init(k.Recv)
	return t
}

// Seal appends one message to dst. The plaintext may lie where its ciphertext
// goes, at dst[len(dst)+8:] of the same array.
func (t *Transport) Seal(dst, plaintext []byte) ([]byte, error) {
	if len(plaintext) > MaxTransport {
		return nil, ErrTooLong
	}
	aead, counter, err := t.send.next()
	if err != nil {
		return nil, err
	}
	dst = slices.Grow(dst, TransportOverhead+len(plaintext))
	dst = binary.BigEndian.AppendUint64(dst, counter)
	return t.send.seal(aead, dst, counter, plaintext, nil), nil
}

// Open checks a message and appends its plaintext to dst, which may be
// msg[8:8] to decrypt in place. Authentication comes before the replay window.
func (t *Transport) Open(dst, msg []byte) ([]byte, error) {
	if len(msg) < TransportOverhead || len(msg) > TransportOverhead+MaxTransport {
		return nil, ErrAuth
	}
	return t.recv.open(dst, binary.BigEndian.Uint64(msg), msg[8:], nil)
}

// Wipe drops the keys: Seal and Open fail with ErrClosed afterwards.
func (t *Transport) Wipe() {
	t.send.aead.Store(nil)
	t.recv.aead.Store(nil)
}
