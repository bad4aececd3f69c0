package overlay

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

// withdrawPatience bounds Withdraw whatever its context says.
const withdrawPatience = 10 * time.Second

// metaWithdrawn holds the serial up to which our claims were taken back.
const metaWithdrawn = "withdrawn"

// A Withdrawal is what became of our claim at one home server.
type Withdrawal struct {
	Server string `json:"server"`
	Gone   bool   `json:"gone"`            // the server knows us no more
	Error  string `json:"error,omitempty"` // why not
}

// Withdraw takes our claims back from all home servers: they forget card, mail
// and whereabouts, so nobody finds this agent until it runs again and claims its
// address anew. The node registers nowhere after it; it is the last that is asked
// of one before its end. Mail that waits to go out has a part of the time for it. A server
// that is not reached within ten seconds, or before ctx ends, goes on knowing the
// agent.
func (n *Node) Withdraw(ctx context.Context) ([]Withdrawal, error) {
	ctx, cancel := context.WithTimeout(ctx, withdrawPatience)
	defer cancel()
	card, err := crypto.ParseCard(n.loop.secrets.card())
	if err != nil {
		return nil, publicError(err)
	}
	n.emptyOutbox(ctx)
	// First what keeps our next claim above the withdrawal.
	if err := n.store.PutMeta(metaWithdrawn, strconv.AppendUint(nil, card.Serial, 10)); err != nil {
		return nil, publicError(err)
	}
	if err := n.loop.call(ctx, func(now instant) {
		for _, h := range n.loop.servers {
			h.bye(now)
			h.claimed, h.left = false, true
		}
	}); err != nil {
		return nil, err
	}
	list := make([]Withdrawal, len(n.cfg.Servers))
	var all sync.WaitGroup
	for i, s := range n.cfg.Servers {
		all.Go(func() {
			list[i] = Withdrawal{Server: s.String()}
			if err := n.withdrawFrom(ctx, s, card.Serial); err != nil {
				list[i].Error = err.Error()
				return
			}
			list[i].Gone = true
		})
	}
	all.Wait()
	return list, nil
}

func (n *Node) withdrawFrom(ctx context.Context, s crypto.Server, serial uint64) error {
	static := n.loop.secrets.registration
	cfg := n.loop.dialConfig(s)
	cfg.Static, cfg.Key = &static, n.cfg.Identity.Key.Public()
	c, err := relay.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Withdraw(ctx, ipam.Withdrawal{Server: s.Key, Serial: serial}.Sign(n.cfg.Identity.Key))
}

// emptyOutbox waits until no mail waits to go out, for a third of the time that is left.
func (n *Node) emptyOutbox(ctx context.Context) {
	end, ok := ctx.Deadline()
	if !ok {
		return
	}
	late := time.NewTimer(time.Until(end) / 3)
	defer late.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	n.loop.kickOutbox()
	for len(n.store.Outbox()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-late.C:
			return
		case <-tick.C:
		}
	}
}

// withdrawnUpTo is the serial that our next card must be above.
func withdrawnUpTo(meta metaStore) uint64 {
	b, ok := meta.GetMeta(metaWithdrawn)
	if !ok {
		return 0
	}
	serial, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return 0
	}
	return serial
}
