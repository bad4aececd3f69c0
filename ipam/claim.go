package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pilotnet/pilot/crypto"
)

const (
	claimContext = "pilot claim v1"
	claimMagic   = "PCL1"
	claimBody    = 92

	// ClaimSize is the length of a signed claim.
	ClaimSize = claimBody + crypto.SignatureSize
)

// Claim takes an address at a home server for the key that signs it.
type Claim struct {
	Addr         Addr
	Key          crypto.PublicKey
	Counter      uint64
	Registration crypto.DHPublic // proves the agent to the server from then on
	Serial       uint64          // a server keeps the highest
}

// Sign encodes the claim and appends the signature. The key of the claim is
// the one that signs, whatever c.Key holds.
func (c Claim) Sign(k crypto.PrivateKey) []byte {
	c.Key = k.Public()
	b := c.appendBody(make([]byte, 0, ClaimSize))
	return append(b, k.Sign(claimContext, b)...)
}

// ParseClaim decodes a signed claim and checks its form, its keys and the
// signature. It does not check that the address follows from the key: Verify
// does, at a cost that a server must not pay for noise.
func ParseClaim(b []byte) (Claim, error) {
	if len(b) != ClaimSize {
		return Claim{}, fmt.Errorf("ipam: claim: %d bytes, want %d", len(b), ClaimSize)
	}
	body, sig := b[:claimBody], b[claimBody:]
	c, err := parseClaimBody(body)
	if err != nil {
		return Claim{}, err
	}
	if !c.Key.Verify(claimContext, body, sig) {
		return Claim{}, fmt.Errorf("ipam: claim: signature: %w", crypto.ErrAuth)
	}
	return c, nil
}

// Verify returns ErrNotDerived unless the address follows from key and counter.
// It costs one Argon2id.
func (c Claim) Verify() error { return checkNode(c.Addr, c.Key, c.Counter) }

func (c Claim) appendBody(b []byte) []byte {
	addr := c.Addr.Bytes()
	b = append(b, claimMagic...)
	b = append(b, addr[:]...)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint64(b, c.Counter)
	b = binary.BigEndian.AppendUint64(b, c.Serial)
	b = append(b, c.Key[:]...)
	return append(b, c.Registration[:]...)
}

func parseClaimBody(b []byte) (Claim, error) {
	if len(b) != claimBody || string(b[:4]) != claimMagic || b[10] != 0 || b[11] != 0 {
		return Claim{}, errors.New("ipam: claim: not a claim of version 1")
	}
	c := Claim{
		Addr:    AddrFromBytes([6]byte(b[4:10])),
		Counter: binary.BigEndian.Uint64(b[12:20]),
		Serial:  binary.BigEndian.Uint64(b[20:28]),
	}
	if !c.Addr.Valid() {
		return Claim{}, fmt.Errorf("ipam: claim: address %s is reserved", c.Addr)
	}
	var err error
	if c.Key, err = crypto.ParsePublicKey(b[28:60]); err != nil {
		return Claim{}, fmt.Errorf("ipam: claim: %w", err)
	}
	if c.Registration, err = crypto.ParseDHPublic(b[60:92]); err != nil {
		return Claim{}, fmt.Errorf("ipam: claim: %w", err)
	}
	return c, nil
}
