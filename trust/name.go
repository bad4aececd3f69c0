package trust

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/pilotnet/pilot/crypto"
)

// reservedNames would be taken for something else than a peer.
var reservedNames = map[string]bool{
	"localhost": true, "wpad": true, "local": true, "internal": true, "gateway": true, "dns": true,
	"isatap": true, "broadcasthost": true, "pilot": true, "all": true, "none": true,
}

// ValidName is the rule for petnames when Config brings none: 1 to 32 letters,
// digits and hyphens in lower case, no hyphen at either end, not reserved.
func ValidName(name string) error {
	bad := name == "" || len(name) > 32 || name[0] == '-' || name[len(name)-1] == '-'
	for _, c := range []byte(name) {
		bad = bad || (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
	}
	switch {
	case bad:
		return fmt.Errorf("trust: name %q: want 1 to 32 of a-z, 0-9 and hyphen", CleanText(name, maxName))
	case reservedNames[name]:
		return fmt.Errorf("trust: name %q is reserved", name)
	}
	return nil
}

// validName returns the name in lower case.
func (s *Store) validName(name string) (string, error) {
	name = strings.ToLower(name)
	if err := s.cfg.ValidName(name); err != nil {
		return "", fmt.Errorf("%w: %w", ErrName, err)
	}
	return name, nil
}

// nameOwner returns who else has the name: a peer, or a key that we asked for trust
// under that name. The caller holds the writer lock.
func (s *Store) nameOwner(name string, self crypto.PublicKey) (crypto.PublicKey, bool) {
	for key, r := range s.book {
		if key == self {
			continue
		}
		if r.Name == name {
			return key, true
		}
		if o := r.asked(); o != nil && o.As == name {
			return key, true
		}
	}
	return crypto.PublicKey{}, false
}

// chooseName settles the petname for a key: the wish, else the name it has, else
// what it suggests. A wish must be valid and free. A suggestion must also not be
// what another waiting request suggests, or the choice would go by who came first.
func (s *Store) chooseName(key crypto.PublicKey, r *relation, wish, suggested string) (string, error) {
	taken := func(name string, by crypto.PublicKey) error {
		return fmt.Errorf("trust: %q is claimed by %s and by %s: %w; say which with another name", name, key, by, ErrNameTaken)
	}
	if wish == "" && r.Name != "" {
		return r.Name, nil
	}
	name, err := s.validName(cmp.Or(wish, suggested))
	if err != nil {
		return "", fmt.Errorf("trust: %s: %w; give a name", key, err)
	}
	if other, ok := s.nameOwner(name, key); ok {
		return "", taken(name, other)
	}
	if wish != "" {
		return name, nil
	}
	for other, o := range s.book {
		if other != key && o.In != nil && !o.Blocked && strings.ToLower(o.In.Name) == name {
			return "", taken(name, other)
		}
	}
	return name, nil
}

// fallbackName is a name that is free whatever the peer suggests.
func (s *Store) fallbackName(key crypto.PublicKey) string {
	print := key.Fingerprint().String()
	for n := 8; ; n++ {
		name := "peer-" + print[:n]
		if _, used := s.nameOwner(name, key); !used || n == len(print) {
			return name
		}
	}
}

// addressOwner returns which other peer has the address.
func (s *Store) addressOwner(addr [6]byte, self crypto.PublicKey) (crypto.PublicKey, bool) {
	for key, r := range s.book {
		if key != self && r.Addr == addr && (r.Pair != nil || len(r.Out) > 0) {
			return key, true
		}
	}
	return crypto.PublicKey{}, false
}

func (s *Store) checkAddress(addr [6]byte, key crypto.PublicKey) error {
	if other, ok := s.addressOwner(addr, key); ok {
		return fmt.Errorf("trust: %s has the address of %s: %w", key, other, ErrAddressTaken)
	}
	return nil
}
