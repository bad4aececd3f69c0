package relay

import (
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// StampSize is the size of a stamp.
const StampSize = 16

// StampWindow is how far a stamp's time may be from the server's.
const StampWindow = 10 * time.Minute

// MaxStampBits bounds what a server may ask: about 17 million hashes, a few seconds.
const MaxStampBits = 24

const stampLabel = "pilot stamp v1"

// A Stamp is a proof of work: a time and a nonce.
type Stamp [StampSize]byte

// stampInput lays out what is hashed; the stamp itself is its last 16 bytes.
func stampInput(server crypto.DHPublic, op Op, subject [32]byte) []byte {
	b := append(make([]byte, 0, len(stampLabel)+81), stampLabel...)
	b = append(b, server[:]...)
	b = append(b, byte(op))
	b = append(b, subject[:]...)
	return append(b, make([]byte, StampSize)...)
}

// NewStamp works until it has found a stamp of n bits for the server, operation
// and subject, about 2^n hashes (2^18 take some 30 ms), or until ctx ends.
func NewStamp(ctx context.Context, server crypto.DHPublic, op Op, subject [32]byte, n int, now time.Time) (Stamp, error) {
	if n > MaxStampBits {
		return Stamp{}, fmt.Errorf("relay: stamp: server asks for %d bits, more than %d", n, MaxStampBits)
	}
	b := stampInput(server, op, subject)
	s := b[len(b)-StampSize:]
	binary.BigEndian.PutUint64(s, millis(now))
	if _, err := crand.Read(s[8:]); err != nil { // where to begin
		return Stamp{}, fmt.Errorf("relay: stamp: %w", err)
	}
	for nonce := binary.BigEndian.Uint64(s[8:]); ; nonce++ {
		binary.BigEndian.PutUint64(s[8:], nonce)
		if zeroBits(sha256.Sum256(b)) >= n {
			return Stamp(s), nil
		}
		if nonce&0xfff == 0 && ctx.Err() != nil {
			return Stamp{}, fmt.Errorf("relay: stamp: %w", ctx.Err())
		}
	}
}

// Check reports whether s is a stamp of n bits whose time is near now.
func (s Stamp) Check(server crypto.DHPublic, op Op, subject [32]byte, n int, now time.Time) bool {
	at, ok := fromMillis(binary.BigEndian.Uint64(s[:]))
	if d := now.Sub(at); !ok || d > StampWindow || d < -StampWindow {
		return false
	}
	b := stampInput(server, op, subject)
	copy(b[len(b)-StampSize:], s[:])
	return zeroBits(sha256.Sum256(b)) >= n
}

func zeroBits(sum [32]byte) int {
	n := bits.LeadingZeros64(binary.BigEndian.Uint64(sum[:]))
	return n // 64 is more than any n asked
}

// ClaimSubject is what the stamp of a first claim is bound to.
func ClaimSubject(claim []byte) [32]byte { return sha256.Sum256(claim) }

// MailSubject is what the stamp of a mail is bound to.
func MailSubject(to crypto.Fingerprint, body []byte) [32]byte {
	h := sha256.New()
	h.Write(to[:])
	h.Write(body)
	return [32]byte(h.Sum(nil))
}
