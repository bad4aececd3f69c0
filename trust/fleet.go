package trust

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// MaxInviteUses is the most keys that may use one invite.
const MaxInviteUses = 1000

// An InviteInfo is what is known of an invite that was made here. Its secret is not kept.
type InviteInfo struct {
	ID      string // names it here and on no other agent
	Ports   Scope
	Made    time.Time // zero if an older version made it
	Expires time.Time
	For     *crypto.Fingerprint
	Name    string
	Uses    int // how many keys may use it
	By      []InviteUse
}

// An InviteUse is one key's use of an invite.
type InviteUse struct {
	Key     crypto.PublicKey
	At      time.Time
	Trusted bool   // its trust rests on the invite
	Name    string // its petname, while it is trusted
}

// ID returns the name that the invite has at its issuer, which does not give the
// secret away.
func (i Invite) ID() string { return inviteID(sha256.Sum256(i.Secret[:])) }

const inviteIDSize = 5

func inviteID(hash [32]byte) string { return hex.EncodeToString(hash[:inviteIDSize]) }

// users lists who has used it.
func (r *inviteRecord) users() []inviteUse {
	if r.UsedBy != nil {
		return []inviteUse{{*r.UsedBy, r.Used}}
	}
	return r.By
}

// spent returns who used up what the key wants to use: itself, or whoever came
// last; nil if there is a use left for it.
func (r *inviteRecord) spent(key crypto.PublicKey) *crypto.PublicKey {
	by := r.users()
	if slices.ContainsFunc(by, func(u inviteUse) bool { return u.Key == key }) {
		return &key
	}
	if len(by) < max(r.Uses, 1) {
		return nil
	}
	return &by[len(by)-1].Key
}

// use returns the record with one use more.
func (r *inviteRecord) use(key crypto.PublicKey, now time.Time) *inviteRecord {
	used := *r
	if r.Uses > 1 {
		used.By = append(slices.Clone(r.By), inviteUse{key, now.Unix()})
		return &used
	}
	used.UsedBy, used.Used = &key, now.Unix()
	return &used
}

// inviteName settles the petname of who uses an invite. Of a fleet many suggest
// the same, and nobody is there to choose: their names are numbered.
func (s *Store) inviteName(key crypto.PublicKey, r *relation, inv *inviteRecord, suggested string) (string, error) {
	if inv.Uses <= 1 {
		return s.chooseName(key, r, inv.Name, suggested)
	}
	if inv.Name == "" || r.Name != "" {
		if name, err := s.chooseName(key, r, "", suggested); err == nil {
			return name, nil
		}
	}
	base, err := s.validName(cmp.Or(inv.Name, suggested))
	if err != nil {
		return s.fallbackName(key), nil
	}
	for n := len(inv.users()) + 1; ; n++ {
		number := "-" + strconv.Itoa(n)
		name, err := s.validName(strings.TrimRight(base[:min(len(base), 32-len(number))], "-") + number)
		if err != nil {
			return s.fallbackName(key), nil
		}
		if _, used := s.nameOwner(name, key); !used {
			return name, nil
		}
	}
}

// invited lists the peers whose trust rests on an invite. The caller holds the
// writer lock or mu.
func (s *Store) invited(hash [32]byte) []crypto.PublicKey {
	var keys []crypto.PublicKey
	for key, r := range s.book {
		if r.Pair != nil && r.Pair.Invite == hash {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, crypto.PublicKey.Compare)
	return keys
}

// Invites lists the invites that can still be used, or whose users are still
// trusted, or that ended less than 30 days ago; the newest first.
func (s *Store) Invites() []InviteInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]InviteInfo, 0, len(s.invites))
	for hash, inv := range s.invites {
		list = append(list, s.inviteInfo(hash, inv))
	}
	slices.SortFunc(list, func(a, b InviteInfo) int {
		return cmp.Or(b.Made.Compare(a.Made), b.Expires.Compare(a.Expires), strings.Compare(a.ID, b.ID))
	})
	return list
}

func (s *Store) inviteInfo(hash [32]byte, inv *inviteRecord) InviteInfo {
	info := InviteInfo{
		ID: inviteID(hash), Ports: inv.Ports, Expires: timeOf(inv.Expires), For: inv.For, Name: inv.Name, Uses: max(inv.Uses, 1),
	}
	if inv.Made > 0 {
		info.Made = timeOf(inv.Made)
	}
	for _, u := range inv.users() {
		use := InviteUse{Key: u.Key, At: timeOf(u.At)}
		if r := s.book[u.Key]; r != nil && r.Pair != nil && r.Pair.Invite == hash {
			use.Trusted, use.Name = true, r.Name
		}
		info.By = append(info.By, use)
	}
	return info
}

// EndInvite makes an invite, named by its ID or a beginning of that which fits one only, expire
// now. It returns the peers whose trust rests on it, which stays. An invite that has ended
// is no error.
func (s *Store) EndInvite(id string) ([]crypto.PublicKey, error) {
	d := s.begin()
	defer d.end()
	var found [][32]byte
	for hash := range s.invites {
		if id != "" && strings.HasPrefix(inviteID(hash), strings.ToLower(id)) {
			found = append(found, hash)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("trust: end invite %.40q: %d have this ID: %w", id, len(found), ErrNotFound)
	}
	ended := *s.invites[found[0]]
	ended.Expires = min(ended.Expires, s.now().Unix())
	d.invite[found[0]] = &ended
	return s.invited(found[0]), d.commit()
}
