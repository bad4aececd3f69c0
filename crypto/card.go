package crypto

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	cardContext = "pilot card v1"
	cardVersion = 1
	cardFixed   = 4 + 32 + 8 + 8 + 1216 + 32

	// MaxCardSize bounds the encoding of a card.
	MaxCardSize = 4096
	// MaxServers is how many home servers a card may name.
	MaxServers = 4
)

// Card is what an agent publishes about itself, signed by its identity. A
// higher serial supersedes; there is no expiry.
type Card struct {
	Key          PublicKey  // the identity, which signs
	Counter      uint64     // node ID counter; ipam checks it
	Seal         SealPublic // mail to the agent is sealed to this
	Registration DHPublic   // proves the agent to its home servers
	Servers      []Server   // home servers, in order of preference
	Serial       uint64
}

// Sign encodes the card and appends the signature. It refuses a card that
// ParseCard would not accept, and a key other than the card's.
func (c Card) Sign(k PrivateKey) ([]byte, error) {
	if k.Public() != c.Key {
		return nil, errors.New("crypto: card: signing key is not the key of the card")
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	b := c.appendBody(make([]byte, 0, cardFixed+len(c.Servers)*64+SignatureSize))
	return append(b, k.Sign(cardContext, b)...), nil
}

func (c Card) check() error {
	if err := c.Key.check(); err != nil {
		return fmt.Errorf("crypto: card: key: %w", err)
	}
	if _, err := c.Seal.parse(); err != nil {
		return fmt.Errorf("crypto: card: %w", err)
	}
	if err := c.Registration.check(); err != nil {
		return fmt.Errorf("crypto: card: registration key: %w", err)
	}
	if len(c.Servers) > MaxServers {
		return fmt.Errorf("crypto: card: %d servers, at most %d", len(c.Servers), MaxServers)
	}
	for _, s := range c.Servers {
		if err := s.check(); err != nil {
			return fmt.Errorf("crypto: card: server: %w", err)
		}
	}
	return nil
}

func (c Card) appendBody(b []byte) []byte {
	b = append(b, cardVersion, byte(len(c.Servers)), 0, 0)
	b = append(b, c.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Counter)
	b = binary.BigEndian.AppendUint64(b, c.Serial)
	b = append(b, c.Seal[:]...)
	b = append(b, c.Registration[:]...)
	for _, s := range c.Servers {
		b = binary.BigEndian.AppendUint16(b, s.Port)
		b = append(b, byte(len(s.Host)))
		b = append(b, s.Host...)
		b = append(b, s.Key[:]...)
	}
	return b
}

var errCardLength = errors.New("crypto: card: wrong length")

// ParseCard decodes a signed card and checks all of it: the form, every key,
// and the signature by the card's own key. Each card has one encoding. What
// it cannot check is that the counter fits the key: that takes Argon2id.
func ParseCard(b []byte) (Card, error) {
	if len(b) > MaxCardSize || len(b) < SignatureSize {
		return Card{}, errCardLength
	}
	body, sig := b[:len(b)-SignatureSize], b[len(b)-SignatureSize:]
	c, err := decodeCard(body)
	if err != nil {
		return Card{}, err
	}
	if !c.Key.Verify(cardContext, body, sig) {
		return Card{}, fmt.Errorf("crypto: card: signature: %w", ErrAuth)
	}
	if err := c.check(); err != nil {
		return Card{}, err
	}
	return c, nil
}

// decodeCard reads the fields of a body of exact length. The values are not
// checked yet.
func decodeCard(body []byte) (Card, error) {
	if len(body) < cardFixed {
		return Card{}, errCardLength
	}
	if body[0] != cardVersion || body[2] != 0 || body[3] != 0 {
		return Card{}, fmt.Errorf("crypto: card: unknown version %x", body[:4])
	}
	c := Card{
		Key:          PublicKey(body[4:36]),
		Counter:      binary.BigEndian.Uint64(body[36:44]),
		Serial:       binary.BigEndian.Uint64(body[44:52]),
		Seal:         SealPublic(body[52:1268]),
		Registration: DHPublic(body[1268:1300]),
	}
	rest := body[cardFixed:]
	for range int(body[1]) {
		if len(rest) < 3 || len(rest) < 3+int(rest[2])+32 {
			return Card{}, errCardLength
		}
		n := 3 + int(rest[2])
		c.Servers = append(c.Servers, Server{
			Port: binary.BigEndian.Uint16(rest),
			Host: string(rest[3:n]),
			Key:  DHPublic(rest[n : n+32]),
		})
		rest = rest[n+32:]
	}
	if len(rest) != 0 {
		return Card{}, errCardLength
	}
	return c, nil
}
