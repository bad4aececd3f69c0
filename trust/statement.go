package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

const (
	statementContext = "pilot trust v1" // Ed25519 signatures over a body
	mailInfo         = "pilot mail v1"  // HPKE info of a sealed statement
	statementMagic   = "PTS1"

	statementFixed = 201 // bytes before the parts of variable length
	maxName        = 64
	maxReason      = 512
	inviteSize     = 16

	// MaxStatement bounds the body of a statement, without the signature.
	MaxStatement = 4096
	// MaxSealed bounds a sealed statement: what one item of mail can hold.
	MaxSealed = MaxStatement + crypto.SignatureSize + crypto.SealOverhead

	// maxSerial leaves room above any serial that is accepted, so that "the
	// next serial" never overflows.
	maxSerial = 1 << 62
	// maxExpires is the end of the year 9999.
	maxExpires = 253402300799
)

// Kind says what a statement does.
type Kind uint8

// The kinds of statement.
const (
	KindRequest Kind = 1 // asks the subject for trust
	KindGrant   Kind = 2 // answers a request, or changes the terms of a pair
	KindRevoke  Kind = 3 // voids everything between the two keys up to its serial
)

func (k Kind) String() string {
	switch k {
	case KindRequest:
		return "request"
	case KindGrant:
		return "grant"
	case KindRevoke:
		return "revoke"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Statement is what one key says to another about trust. The package comment
// gives its wire form and says which kind uses which field.
type Statement struct {
	Kind            Kind
	Serial          uint64 // 1 to 2^62-1, above every serial between the two keys so far
	Issuer, Subject crypto.PublicKey
	Expires         time.Time       // whole seconds; zero: never
	Head            uint64          // the issuer's count of changes, with this one; see the package comment
	Parent          [32]byte        // request: newest pair the issuer holds; grant: the request it answers
	Random          [32]byte        // one half of the pair secret
	Tunnel          crypto.DHPublic // the issuer's tunnel static, made for this pair
	Ask             Scope           // what the issuer wants to reach at the subject
	Offer           Scope           // what the subject may reach at the issuer
	Invite          []byte          // request: secret of a one-use invite, 16 bytes, or none
	Name            string          // the name that the issuer suggests for itself: untrusted
	Reason          string          // request: the justification: untrusted
	Card            []byte          // the issuer's signed card
}

// Terms reports whether a grant only changes scope and expiry of a pair and
// brings no secrets.
func (s Statement) Terms() bool { return s.Kind == KindGrant && s.Random == [32]byte{} }

// ID is the SHA-256 of the body, without the signature.
func (s Statement) ID() [32]byte { return sha256.Sum256(s.body()) }

// Sign encodes the statement and appends the issuer's signature. It refuses
// what ParseStatement would not accept.
func (s Statement) Sign(k crypto.PrivateKey) ([]byte, error) {
	if k.Public() != s.Issuer {
		return nil, errors.New("trust: sign statement: the key is not the issuer's")
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	body := s.body()
	if len(body) > MaxStatement {
		return nil, fmt.Errorf("trust: sign statement: %d bytes, at most %d", len(body), MaxStatement)
	}
	return append(body, k.Sign(statementContext, body)...), nil
}

func (s Statement) body() []byte {
	b := make([]byte, 0, statementFixed+len(s.Card)+len(s.Reason)+len(s.Name)+portSize*(len(s.Ask)+len(s.Offer))+inviteSize+crypto.SignatureSize)
	b = append(b, statementMagic...)
	b = append(b, byte(s.Kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, s.Serial)
	b = binary.BigEndian.AppendUint64(b, expiryToWire(s.Expires))
	b = binary.BigEndian.AppendUint64(b, s.Head)
	b = append(b, s.Issuer[:]...)
	b = append(b, s.Subject[:]...)
	b = append(b, s.Parent[:]...)
	b = append(b, s.Random[:]...)
	b = append(b, s.Tunnel[:]...)
	b = append(b, byte(len(s.Ask)), byte(len(s.Offer)), byte(len(s.Invite)), byte(len(s.Name)), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.Reason)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.Card)))
	b = s.Ask.append(b)
	b = s.Offer.append(b)
	b = append(b, s.Invite...)
	b = append(b, s.Name...)
	b = append(b, s.Reason...)
	return append(b, s.Card...)
}

// ParseStatement reads a signed statement and verifies the signature. It
// accepts exactly what Sign produces. Whether the card inside is good, and
// whether the statement is meant for the reader, is for the reader to check.
func ParseStatement(signed []byte) (Statement, error) {
	if len(signed) < statementFixed+crypto.SignatureSize || len(signed) > MaxStatement+crypto.SignatureSize {
		return Statement{}, fmt.Errorf("trust: statement: %d bytes", len(signed))
	}
	body, sig := signed[:len(signed)-crypto.SignatureSize], signed[len(signed)-crypto.SignatureSize:]
	s, err := parseBody(body)
	if err != nil {
		return Statement{}, err
	}
	if !s.Issuer.Verify(statementContext, body, sig) {
		return Statement{}, errors.New("trust: statement: wrong signature")
	}
	return s, nil
}

func parseBody(b []byte) (s Statement, err error) {
	if string(b[:4]) != statementMagic || b[5] != 0 || b[6] != 0 || b[7] != 0 || b[196] != 0 {
		return s, errors.New("trust: statement: unknown format")
	}
	s.Kind = Kind(b[4])
	s.Serial = binary.BigEndian.Uint64(b[8:])
	if s.Expires, err = expiryFromWire(binary.BigEndian.Uint64(b[16:])); err != nil {
		return s, err
	}
	s.Head = binary.BigEndian.Uint64(b[24:])
	if s.Issuer, err = crypto.ParsePublicKey(b[32:64]); err != nil {
		return s, fmt.Errorf("trust: statement: issuer: %w", err)
	}
	if s.Subject, err = crypto.ParsePublicKey(b[64:96]); err != nil {
		return s, fmt.Errorf("trust: statement: subject: %w", err)
	}
	s.Parent, s.Random, s.Tunnel = [32]byte(b[96:128]), [32]byte(b[128:160]), crypto.DHPublic(b[160:192])
	asks, offers, invite, name := int(b[192])*portSize, int(b[193])*portSize, int(b[194]), int(b[195])
	reason, card := int(binary.BigEndian.Uint16(b[197:])), int(binary.BigEndian.Uint16(b[199:]))
	rest := b[statementFixed:]
	if asks+offers+invite+name+reason+card != len(rest) {
		return s, errors.New("trust: statement: lengths do not add up")
	}
	take := func(n int) []byte {
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	if s.Ask, err = readScope(take(asks)); err != nil {
		return s, err
	}
	if s.Offer, err = readScope(take(offers)); err != nil {
		return s, err
	}
	s.Invite = bytes.Clone(take(invite))
	s.Name = string(take(name))
	s.Reason = string(take(reason))
	s.Card = bytes.Clone(take(card))
	return s, s.check()
}

// check holds the rules that a statement obeys by itself.
func (s Statement) check() error {
	fail := func(what string) error { return fmt.Errorf("trust: statement: %s: %s", s.Kind, what) }
	zero, noDH := [32]byte{}, crypto.DHPublic{}
	if err := errors.Join(s.Ask.check(), s.Offer.check()); err != nil {
		return err
	}
	if expires, err := expiryFromWire(expiryToWire(s.Expires)); err != nil || !expires.Equal(s.Expires) {
		return fail("expiry is not a whole second of this age")
	}
	switch {
	case s.Serial == 0 || s.Serial >= maxSerial:
		return fail("serial out of range")
	case s.Issuer == s.Subject:
		return fail("issuer and subject are the same key")
	case len(s.Name) > maxName, len(s.Reason) > maxReason, len(s.Card) > crypto.MaxCardSize:
		return fail("text or card too long")
	case len(s.Invite) != 0 && (len(s.Invite) != inviteSize || s.Kind != KindRequest):
		return fail("invite out of place")
	}
	secrets := s.Random != zero && s.Tunnel != noDH
	switch s.Kind {
	case KindRequest:
		if !secrets || len(s.Card) == 0 {
			return fail("random, tunnel key or card missing")
		}
	case KindGrant:
		if s.Terms() {
			if s.Parent != zero || s.Tunnel != noDH || len(s.Ask) != 0 || s.Name != "" || s.Reason != "" || len(s.Card) != 0 {
				return fail("terms carry more than scope and expiry")
			}
			return nil
		}
		if !secrets || s.Parent == zero || s.Reason != "" {
			return fail("parent, random or tunnel key missing, or a reason given")
		}
	case KindRevoke:
		bare := Statement{Kind: KindRevoke, Serial: s.Serial, Head: s.Head, Issuer: s.Issuer, Subject: s.Subject}
		if !bytes.Equal(s.body(), bare.body()) {
			return fail("carries more than a serial")
		}
		return nil
	default:
		return fail("unknown")
	}
	if _, err := crypto.ParseDHPublic(s.Tunnel[:]); err != nil {
		return fail("tunnel key: " + err.Error())
	}
	return nil
}

func expiryToWire(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix())
}

func expiryFromWire(n uint64) (time.Time, error) {
	switch {
	case n == 0:
		return time.Time{}, nil
	case n > maxExpires:
		return time.Time{}, errors.New("trust: statement: expiry beyond the year 9999")
	}
	return time.Unix(int64(n), 0).UTC(), nil
}
