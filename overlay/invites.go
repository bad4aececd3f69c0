package overlay

import (
	"context"
	"time"

	"github.com/pilotnet/pilot/trust"
)

// An Invite is what an agent knows of an invitation that it made. The token
// itself is not kept.
type Invite struct {
	ID      string      `json:"id"`
	State   string      `json:"state"` // "open", "used" or "ended"
	Ports   string      `json:"ports"`
	Name    string      `json:"name,omitempty"`
	For     string      `json:"for,omitempty"` // fingerprint
	Made    *time.Time  `json:"made,omitempty"`
	Expires time.Time   `json:"expires"`
	Uses    int         `json:"uses"` // how many agents may use it, once each
	Used    []InviteUse `json:"used"`
}

// An InviteUse is one agent that used an invitation.
type InviteUse struct {
	Fingerprint string    `json:"fingerprint"`
	At          time.Time `json:"at"`
	Trusted     bool      `json:"trusted"` // its trust still rests on the invitation
	Name        string    `json:"name,omitempty"`
}

// EndInviteOptions ends an invitation.
type EndInviteOptions struct {
	ID   string `json:"id"`             // as Invites tells it, or a beginning of it
	Keep bool   `json:"keep,omitempty"` // those who used it stay trusted
}

// Invites lists the invitations that were made here and still matter, the newest
// first.
func (n *Node) Invites() []Invite {
	list := []Invite{}
	now := n.store.Now()
	for _, i := range n.store.Invites() {
		v := Invite{ID: i.ID, State: "open", Ports: i.Ports.String(), Name: i.Name, Expires: i.Expires, Uses: i.Uses, Used: []InviteUse{}}
		if i.For != nil {
			v.For = i.For.String()
		}
		if !i.Made.IsZero() {
			v.Made = &i.Made
		}
		for _, u := range i.By {
			v.Used = append(v.Used, InviteUse{Fingerprint: u.Key.Fingerprint().String(), At: u.At, Trusted: u.Trusted, Name: u.Name})
		}
		switch {
		case len(i.By) >= i.Uses:
			v.State = "used"
		case !now.Before(i.Expires):
			v.State = "ended"
		}
		list = append(list, v)
	}
	return list
}

// EndInvite ends an invitation, and revokes the trust of all who used it unless
// they are to be kept. A call that was cut off is made good by the next one.
func (n *Node) EndInvite(ctx context.Context, o EndInviteOptions) (Invite, error) {
	keys, err := n.store.EndInvite(o.ID)
	if err != nil {
		return Invite{}, publicError(err).WithHint("pilotctl trust invite list shows the invitations and their IDs")
	}
	for _, key := range keys {
		if o.Keep {
			break
		}
		if err := n.Revoke(ctx, key.Fingerprint().String()); err != nil && publicError(err).Code != CodeNotFound {
			return Invite{}, err
		}
	}
	for _, i := range n.Invites() {
		if len(i.ID) >= len(o.ID) && i.ID[:len(o.ID)] == o.ID {
			return i, nil
		}
	}
	return Invite{}, publicError(trust.ErrNotFound)
}
