package overlay

import (
	"context"

	"github.com/pilotnet/pilot/trust"
)

// suspension says why no trust is in force, nil if it is.
func (n *Node) suspension() *Suspension {
	s, ok := n.store.Suspended()
	if !ok {
		return nil
	}
	v := &Suspension{By: s.By, Told: s.Seen, Here: s.Ours, At: s.Made, Since: s.Since}
	for _, p := range n.store.Peers() {
		if p.State == trust.Suspended {
			v.Peers++
		}
	}
	return v
}

// Confirm ends a suspension: whoever calls has looked at the peers and takes the
// state as it is. It returns them; their trust is in force again.
func (n *Node) Confirm(ctx context.Context) ([]Peer, error) {
	if err := n.store.Resume(); err != nil {
		return nil, publicError(err)
	}
	n.log.Info("trust is confirmed")
	err := n.loop.call(ctx, func(now instant) {
		for _, p := range n.store.Peers() {
			n.loop.refresh(now, p.Key)
		}
	})
	if err != nil {
		return nil, err
	}
	n.loop.kickOutbox()
	n.loop.tellHead(true)
	return n.Peers(), nil
}
