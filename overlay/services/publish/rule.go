package publish

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// A Kind is what a publication understands of what it carries.
type Kind string

// The kinds.
const (
	HTTP Kind = "http"
	TCP  Kind = "tcp"
	MCP  Kind = "mcp"
	A2A  Kind = "a2a"
)

// A Rule is one publication as it is stored.
type Rule struct {
	Kind   Kind                 `json:"kind"`
	Target string               `json:"target"` // HOST:PORT, as Check writes it
	Port   uint16               `json:"port"`
	Allow  []crypto.Fingerprint `json:"allow,omitempty"` // empty: everybody whose grant has the port
}

// Check returns the rule in its canonical form. Port 0 becomes the target's.
func (r Rule) Check() (Rule, error) {
	if !slices.Contains([]Kind{HTTP, TCP, MCP, A2A}, r.Kind) {
		return r, fmt.Errorf("publish: kind %.20q: want http, tcp, mcp or a2a", r.Kind)
	}
	t, text, err := parseTarget(r.Target, r.Kind)
	if err != nil {
		return r, fmt.Errorf("publish: %w", err)
	}
	r.Target = text
	if r.Port == 0 {
		r.Port = t.port
	}
	if len(r.Allow) > maxAllow {
		return r, errors.New("publish: too many peers to allow")
	}
	r.Allow = slices.Clone(r.Allow)
	slices.SortFunc(r.Allow, func(a, b crypto.Fingerprint) int { return slices.Compare(a[:], b[:]) })
	r.Allow = slices.Compact(r.Allow)
	return r, nil
}

const maxAllow = 256

// Admits says whether the rule lets a peer pass whose grant includes the port.
// Programs of this machine always pass: they can reach the target anyway.
func (r Rule) Admits(p services.Peer) bool {
	return len(r.Allow) == 0 || p.Self || slices.Contains(r.Allow, p.Fingerprint)
}

func (r Rule) equal(o Rule) bool {
	return r.Kind == o.Kind && r.Target == o.Target && r.Port == o.Port && slices.Equal(r.Allow, o.Allow)
}
