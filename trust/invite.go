package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

const (
	tokenPrefix = "pilot-invite1."
	tokenFixed  = 16 + 8 + 1 + 1 + 2 // secret, expires, length of for, ports, length of contact
	tokenSum    = 4
	maxContact  = 512

	// MaxInviteTTL is the longest life of an invite.
	MaxInviteTTL = 24 * time.Hour
	// inviteMemory is how long an invite is remembered after its end, to tell
	// a second use from a wrong secret.
	inviteMemory = 30 * 24 * time.Hour
)

var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// InviteOptions says what whoever brings the invite gets.
type InviteOptions struct {
	Contact string              // how to reach us; opaque here
	Ports   Scope               // what may be reached here: required, not all
	TTL     time.Duration       // of the invite: required, at most 24 h
	For     *crypto.Fingerprint // only this key may use it; nil: whoever has it
	Name    string              // petname for whoever uses it; empty: what it suggests
	Trust   time.Duration       // how long the trust lasts; 0: as long as the request says
	Uses    int                 // how many keys may use it, once each; 0: one
}

// An Invite is the content of a token.
type Invite struct {
	Contact string
	Secret  [16]byte
	Ports   Scope
	Expires time.Time
	For     *crypto.Fingerprint
}

// Check reports ErrInviteExpired when it is too late to use the invite. The issuer
// checks too, by its own clock, but does not tell a stranger.
func (i Invite) Check(now time.Time) error {
	if !now.Before(i.Expires) {
		return fmt.Errorf("trust: invite: %w on %s; ask for a new one", ErrInviteExpired, i.Expires.Format(time.RFC3339))
	}
	return nil
}

// Invite makes an invite and returns its token. The token is a secret until it is
// used up: whoever shows it first is trusted.
func (s *Store) Invite(o InviteOptions) (string, error) {
	switch {
	case len(o.Ports) == 0 || o.Ports.check() != nil:
		return "", fmt.Errorf("trust: invite: %w: say which ports", ErrScope)
	case o.Ports.All():
		return "", fmt.Errorf("trust: invite: %w: an invite cannot give all ports", ErrScope)
	case o.TTL < time.Second || o.TTL > MaxInviteTTL:
		return "", fmt.Errorf("trust: invite: ttl must be from 1 s to %s", MaxInviteTTL)
	case o.Trust < 0 || len(o.Contact) > maxContact:
		return "", errors.New("trust: invite: contact too long or negative duration")
	case o.Uses < 0 || o.Uses > MaxInviteUses || o.Uses > 1 && o.For != nil:
		return "", fmt.Errorf("trust: invite: it has 1 to %d uses, and one if it is for one key", MaxInviteUses)
	}
	d := s.begin()
	defer d.end()
	if err := s.granting(); err != nil {
		return "", err
	}
	if o.Name != "" {
		name, err := s.validName(o.Name)
		if err != nil {
			return "", err
		}
		if other, ok := s.nameOwner(name, crypto.PublicKey{}); ok {
			return "", fmt.Errorf("trust: invite: %q is the name of %s: %w", name, other, ErrNameTaken)
		}
		o.Name = name
	}
	now := s.now()
	inv := Invite{Contact: o.Contact, Ports: o.Ports, Expires: timeOf(s.expiry(o.TTL)), For: o.For}
	rand.Read(inv.Secret[:])
	for hash, old := range s.invites {
		if passed(old.Expires, now, inviteMemory) && len(s.invited(hash)) == 0 {
			d.invite[hash] = nil
		}
	}
	d.invite[sha256.Sum256(inv.Secret[:])] = &inviteRecord{
		Ports: o.Ports, Expires: inv.Expires.Unix(), For: o.For, Name: o.Name, TTL: int64(o.Trust / time.Second),
		Made: now.Unix(), Uses: o.Uses,
	}
	return inv.token(), d.commit()
}

// useInvite grants a request by its invite and consumes the invite in the same
// transaction. An invite that does not hold leaves an ordinary request.
func (d *draft) useInvite(key crypto.PublicKey, r *relation, in *incoming, secret []byte) (Event, error) {
	s := d.s
	ev := Event{Kind: RequestPending, Name: in.Name}
	hash := sha256.Sum256(secret)
	inv, now := s.invites[hash], s.now()
	switch {
	case inv == nil:
		return ev, fmt.Errorf("trust: request of %s: %w of ours has this secret", key, ErrInvite)
	case inv.For != nil && *inv.For != key.Fingerprint():
		return ev, fmt.Errorf("trust: request of %s: %w, %s", key, ErrInviteOther, *inv.For)
	case inv.spent(key) != nil:
		by := *inv.spent(key)
		ev.Kind = InviteReused
		ev.Text = fmt.Sprintf("invite of %s used again by %s", by, key)
		ev.Err = fmt.Errorf("trust: request of %s: %w, by %s", key, ErrInviteUsed, by)
		return ev, nil
	case passed(inv.Expires, now, 0):
		return ev, fmt.Errorf("trust: request of %s: %w on %s", key, ErrInviteExpired, timeOf(inv.Expires).Format(time.RFC3339))
	case passed(in.Expires, now, 0):
		return ev, fmt.Errorf("trust: request of %s: %w", key, ErrExpired)
	}
	name, err := s.inviteName(key, r, inv, in.Name)
	if err != nil {
		return ev, err
	}
	expires := sooner(in.Expires, s.expiry(time.Duration(inv.TTL)*time.Second))
	if err := d.grant(key, r, in, in.Ask.Intersect(inv.Ports), expires, name); err != nil {
		return ev, err
	}
	r.Pair.Invite = hash
	d.invite[hash] = inv.use(key, now)
	return Event{Kind: InviteUsed, Name: name}, nil
}

// token encodes an invite: the prefix, then in base32
//
//	secret 16 | expires u64 | length of for u8 | ports u8 | length of contact u16 | for | ports | contact | sum 4
//
// where sum is the beginning of the SHA-256 of all before it: it tells a token
// that was cut off in a paste from one that is unknown.
func (i Invite) token() string {
	b := append([]byte(nil), i.Secret[:]...)
	b = binary.BigEndian.AppendUint64(b, expiryToWire(i.Expires))
	var bound []byte
	if i.For != nil {
		bound = i.For[:]
	}
	b = append(b, byte(len(bound)), byte(len(i.Ports)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(i.Contact)))
	b = append(b, bound...)
	b = i.Ports.append(b)
	b = append(b, i.Contact...)
	sum := sha256.Sum256(b)
	return tokenPrefix + tokenEncoding.EncodeToString(append(b, sum[:tokenSum]...))
}

// ParseInvite reads a token, in upper or lower case.
func ParseInvite(token string) (Invite, error) {
	bad := func(why string) (Invite, error) {
		return Invite{}, fmt.Errorf("trust: invite token: %w: %s", ErrInvite, why)
	}
	text, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(token)), tokenPrefix)
	if !ok {
		return bad("does not begin with " + tokenPrefix)
	}
	if len(text) > 4096 {
		return bad("too long")
	}
	b, err := tokenEncoding.DecodeString(text)
	if err != nil || tokenEncoding.EncodeToString(b) != text || len(b) < tokenFixed+tokenSum {
		return bad("cut off or mistyped")
	}
	body := b[:len(b)-tokenSum]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:tokenSum], b[len(body):]) {
		return bad("cut off or mistyped")
	}
	inv := Invite{Secret: [16]byte(body)}
	bound, ports, contact := int(body[24]), int(body[25])*portSize, int(binary.BigEndian.Uint16(body[26:]))
	rest := body[tokenFixed:]
	if bound != 0 && bound != len(crypto.Fingerprint{}) || bound+ports+contact != len(rest) || contact > maxContact {
		return bad("lengths do not add up")
	}
	if inv.Expires, err = expiryFromWire(binary.BigEndian.Uint64(body[16:])); err != nil || inv.Expires.IsZero() {
		return bad("no expiry")
	}
	if bound != 0 {
		inv.For = (*crypto.Fingerprint)(rest)
	}
	if inv.Ports, err = readScope(rest[bound : bound+ports]); err != nil {
		return bad("ports: " + err.Error())
	}
	inv.Contact = string(rest[bound+ports:])
	return inv, nil
}
