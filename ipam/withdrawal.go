package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pilotnet/pilot/crypto"
)

const (
	withdrawalContext = "pilot withdrawal v1"
	withdrawalMagic   = "PWD1"
	withdrawalBody    = 76

	// WithdrawalSize is the length of a signed withdrawal.
	WithdrawalSize = withdrawalBody + crypto.SignatureSize
)

// Withdrawal takes back every claim of a key, at one home server, up to a serial.
// The server's key is under the signature, so that no server can show another one
// what it was told; the serial, so that a claim which is made later stands, however
// often the withdrawal comes again.
//
//	 0   4  "PWD1"
//	 4   8  serial
//	12  32  the key that claimed
//	44  32  the server's key
//	76  64  signature, in the context "pilot withdrawal v1"
type Withdrawal struct {
	Key    crypto.PublicKey
	Server crypto.DHPublic
	Serial uint64
}

// Sign encodes the withdrawal and appends the signature. Its key is the one that
// signs, whatever w.Key holds.
func (w Withdrawal) Sign(k crypto.PrivateKey) []byte {
	w.Key = k.Public()
	b := w.appendBody(make([]byte, 0, WithdrawalSize))
	return append(b, k.Sign(withdrawalContext, b)...)
}

// ParseWithdrawal decodes a signed withdrawal and checks its form, its keys and
// the signature.
func ParseWithdrawal(b []byte) (Withdrawal, error) {
	if len(b) != WithdrawalSize {
		return Withdrawal{}, fmt.Errorf("ipam: withdrawal: %d bytes, want %d", len(b), WithdrawalSize)
	}
	body, sig := b[:withdrawalBody], b[withdrawalBody:]
	w, err := parseWithdrawalBody(body)
	if err != nil {
		return Withdrawal{}, err
	}
	if !w.Key.Verify(withdrawalContext, body, sig) {
		return Withdrawal{}, fmt.Errorf("ipam: withdrawal: signature: %w", crypto.ErrAuth)
	}
	return w, nil
}

func (w Withdrawal) appendBody(b []byte) []byte {
	b = append(b, withdrawalMagic...)
	b = binary.BigEndian.AppendUint64(b, w.Serial)
	b = append(b, w.Key[:]...)
	return append(b, w.Server[:]...)
}

func parseWithdrawalBody(b []byte) (Withdrawal, error) {
	if len(b) != withdrawalBody || string(b[:4]) != withdrawalMagic {
		return Withdrawal{}, errors.New("ipam: withdrawal: not one of version 1")
	}
	w := Withdrawal{Serial: binary.BigEndian.Uint64(b[4:])}
	var err error
	if w.Key, err = crypto.ParsePublicKey(b[12:44]); err != nil {
		return Withdrawal{}, fmt.Errorf("ipam: withdrawal: %w", err)
	}
	if w.Server, err = crypto.ParseDHPublic(b[44:]); err != nil {
		return Withdrawal{}, fmt.Errorf("ipam: withdrawal: %w", err)
	}
	return w, nil
}
