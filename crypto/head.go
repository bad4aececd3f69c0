package crypto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	headContext = "pilot head v1"
	headVersion = 1
	headBody    = 1 + 7 + 8 + 8 + 8 + 32

	// HeadSize is the length of a signed head.
	HeadSize = headBody + SignatureSize
)

// A Head is an agent's own word on how old its state is, signed by its identity.
// Others keep the one with the highest count and show it back: an agent that sees
// a count of its own above the one in its state, or a mark that it never made, runs
// on a restored backup.
type Head struct {
	Key    PublicKey
	Count  uint64 // changes of its trust so far
	Mark   uint64 // random, drawn for this head
	Millis uint64 // when it was made, by the agent's clock, unix ms; for people
}

// Time is when the head was made, by the clock of the agent.
func (h Head) Time() time.Time { return time.UnixMilli(int64(h.Millis)).UTC() }

// Sign encodes the head and appends the signature.
func (h Head) Sign(k PrivateKey) ([]byte, error) {
	if k.Public() != h.Key {
		return nil, errors.New("crypto: head: signing key is not the key of the head")
	}
	if h.Millis >= 1<<63 {
		return nil, errors.New("crypto: head: time out of range")
	}
	b := h.body()
	return append(b, k.Sign(headContext, b)...), nil
}

func (h Head) body() []byte {
	b := make([]byte, 8, HeadSize)
	b[0] = headVersion
	b = binary.BigEndian.AppendUint64(b, h.Count)
	b = binary.BigEndian.AppendUint64(b, h.Mark)
	b = binary.BigEndian.AppendUint64(b, h.Millis)
	return append(b, h.Key[:]...)
}

// ParseHead decodes a signed head and checks its form, its key and the signature by
// that key. It accepts exactly what Sign produces.
func ParseHead(b []byte) (Head, error) {
	if len(b) != HeadSize {
		return Head{}, fmt.Errorf("crypto: head: %d bytes, not %d", len(b), HeadSize)
	}
	body, sig := b[:headBody], b[headBody:]
	h := Head{
		Count: binary.BigEndian.Uint64(body[8:]), Mark: binary.BigEndian.Uint64(body[16:]),
		Millis: binary.BigEndian.Uint64(body[24:]),
	}
	var err error
	if h.Key, err = ParsePublicKey(body[32:]); err != nil {
		return Head{}, fmt.Errorf("crypto: head: key: %w", err)
	}
	if string(h.body()) != string(body) || h.Millis >= 1<<63 {
		return Head{}, errors.New("crypto: head: unknown form")
	}
	if !h.Key.Verify(headContext, body, sig) {
		return Head{}, fmt.Errorf("crypto: head: signature: %w", ErrAuth)
	}
	return h, nil
}
