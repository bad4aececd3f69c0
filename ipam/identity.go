package ipam

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/pilotnet/pilot/crypto"
)

const identityHeader = "pilot-identity-v1"

// Identity is what makes an agent: its key and the counter that goes with it.
// Node follows from both; it is kept because computing it is costly.
//
// MarshalText returns the secret. An Identity prints and logs as its address.
type Identity struct {
	Key     crypto.PrivateKey
	Counter uint64
	Node    uint32
}

// NewIdentity derives the identity of key: see Derive for the time it takes.
func NewIdentity(ctx context.Context, key crypto.PrivateKey, progress func(tried int)) (Identity, error) {
	counter, err := Derive(ctx, key.Public(), progress)
	if err != nil {
		return Identity{}, err
	}
	node, err := NodeID(key.Public(), counter)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Key: key, Counter: counter, Node: node}, nil
}

// Addr returns the agent's address.
func (id Identity) Addr() Addr { return Addr{Node: id.Node} }

// Verify computes the node ID anew and returns ErrNotDerived if Node is another.
func (id Identity) Verify() error { return checkNode(id.Addr(), id.Key.Public(), id.Counter) }

// Format prints the address whatever the verb, so that no message shows a seed.
func (id Identity) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "ipam.Identity(%s)", id.Addr()) }

// LogValue keeps slog from calling MarshalText.
func (id Identity) LogValue() slog.Value { return slog.StringValue(id.Addr().String()) }

// seedText is the encoding of seeds: the lower-case base32 of package crypto.
var seedText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// MarshalText returns the identity file, the seed in it.
func (id Identity) MarshalText() ([]byte, error) {
	seed := id.Key.Seed()
	return fmt.Appendf(nil, "%s\nseed %s\ncounter %d\naddress %s\n",
		identityHeader, seedText.EncodeToString(seed[:]), id.Counter, id.Addr()), nil
}

// UnmarshalText is ParseIdentity.
func (id *Identity) UnmarshalText(text []byte) error {
	parsed, err := ParseIdentity(text)
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseIdentity reads an identity file in its one canonical form. It does not
// check that the address follows from the key: Verify does. No error quotes
// the seed.
func ParseIdentity(text []byte) (Identity, error) {
	lines := strings.Split(string(text), "\n")
	if lines[0] != identityHeader {
		return Identity{}, fmt.Errorf("ipam: identity: does not begin with the line %q", identityHeader)
	}
	if len(lines) != 5 || lines[4] != "" {
		return Identity{}, errors.New("ipam: identity: want four lines, each ended by a line feed")
	}
	var field [3]string
	for i, name := range [3]string{"seed", "counter", "address"} {
		value, ok := strings.CutPrefix(lines[i+1], name+" ")
		if !ok {
			return Identity{}, fmt.Errorf("ipam: identity: line %d does not begin with %q", i+2, name)
		}
		field[i] = value
	}
	seed, err := seedText.DecodeString(field[0])
	if err != nil || len(seed) != 32 || seedText.EncodeToString(seed) != field[0] {
		return Identity{}, errors.New("ipam: identity: seed is not 52 characters of canonical base32")
	}
	counter, err := strconv.ParseUint(field[1], 10, 64)
	if err != nil || strconv.FormatUint(counter, 10) != field[1] {
		return Identity{}, errors.New("ipam: identity: counter is not a canonical number")
	}
	addr, err := ParseAddr(field[2])
	if err != nil {
		return Identity{}, fmt.Errorf("ipam: identity: %w", err)
	}
	if addr.String() != field[2] || !addr.Valid() {
		return Identity{}, errors.New("ipam: identity: address is not canonical or is reserved")
	}
	return Identity{Key: crypto.NewPrivateKey([32]byte(seed)), Counter: counter, Node: addr.Node}, nil
}
