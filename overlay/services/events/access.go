package events

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// Everybody is the key of what every peer may subscribe to.
const Everybody = "all"

// DefaultFilter is what every peer may subscribe to unless the owner changes it.
const DefaultFilter = "public/#"

// An Access says which filters peers may subscribe to: those below Everybody and
// those below their fingerprint.
type Access map[string][]string

func defaultAccess() Access { return Access{Everybody: {DefaultFilter}} }

// Reads says whether a peer may have all that a filter (or a topic) selects. The
// owner may have everything.
func (a Access) Reads(p services.Peer, filter string) bool {
	if p.Self {
		return true
	}
	covers := func(wide string) bool { return Covers(wide, filter) }
	return slices.ContainsFunc(a[Everybody], covers) || slices.ContainsFunc(a[p.Fingerprint.String()], covers)
}

// Writes says whether a peer may publish under a topic: below peer/NAME/ with the
// petname that the owner gave it. The owner may publish everywhere.
func Writes(p services.Peer, topic string) bool {
	return p.Self || p.Name != "" && strings.HasPrefix(topic, ownPrefix(p.Name))
}

func ownPrefix(name string) string { return "peer/" + name + "/" }

// maxFilters bounds what the owner may allow to one peer.
const maxFilters = 64

// with returns a copy of a with one filter allowed or forbidden to who, which is
// Everybody or a fingerprint.
func (a Access) with(who, filter string, allowed bool) (Access, error) {
	if _, err := crypto.ParseFingerprint(who); err != nil && who != Everybody {
		return nil, fmt.Errorf("events: %.60q is neither %s nor a fingerprint", who, Everybody)
	}
	if err := CheckFilter(filter); err != nil {
		return nil, err
	}
	next := maps.Clone(a)
	list := slices.Clone(a[who])
	at := slices.Index(list, filter)
	switch {
	case allowed && at < 0 && len(list) >= maxFilters:
		return nil, fmt.Errorf("events: one peer can have %d filters", maxFilters)
	case allowed && at < 0:
		list = append(list, filter)
	case !allowed && at >= 0:
		list = slices.Delete(list, at, at+1)
	}
	next[who] = list
	if len(list) == 0 && who != Everybody {
		delete(next, who)
	}
	return next, nil
}
