package overlay

import (
	"context"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
)

// fetchMail takes the waiting mail from a home server. An item is acknowledged
// after the store has made durable what it says, or found that it says nothing;
// so a crash in between only repeats it. It runs beside the loop.
func (l *loop) fetchMail(ctx context.Context, c *relay.Control) error {
	items, err := c.Mail(ctx)
	if err != nil {
		return err
	}
	var done []uint64
	for _, item := range items {
		e, err := l.store.Receive(item.Body)
		if err != nil {
			l.log.Error("cannot store mail; it stays at the server", "err", err)
			break
		}
		l.log.Info("mail", "outcome", e.Kind, "peer", e.Peer.Fingerprint(), "name", e.Name, "err", e.Err)
		done = append(done, item.ID)
		l.post(func(now instant) { l.mailed(now, e) })
	}
	if len(done) == 0 {
		return nil
	}
	return c.Ack(ctx, done...)
}

// mailed brings the links in line with what a piece of mail changed.
func (l *loop) mailed(now instant, e trust.Event) {
	if !e.Peer.IsZero() {
		l.refresh(now, e.Peer)
	}
	l.kickOutbox()
}

// An outbox delivers what the store wants to be told to others: one goroutine
// that works through the store's list whenever it is kicked, and again later
// for what did not get through.
type outbox struct {
	loop *loop
	kick chan struct{}
}

const (
	outboxFirst = time.Second
	outboxMost  = 5 * time.Minute
)

func (l *loop) kickOutbox() {
	l.tellHead(false)
	select {
	case l.outbox.kick <- struct{}{}:
	default:
	}
}

func (o *outbox) run(ctx context.Context) error {
	var wait time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.kick:
			wait = 0
		case <-timer.C:
		}
		if o.deliver(ctx) {
			wait = 0
			timer.Stop()
			continue
		}
		wait = min(max(2*wait, outboxFirst), outboxMost)
		timer.Reset(wait)
	}
}

// deliver tries every item once and reports whether the outbox is empty. An
// item is delivered when one home server of the receiver has made it durable;
// the others get it too if they answer.
func (o *outbox) deliver(ctx context.Context) (empty bool) {
	empty = true
	for _, m := range o.loop.store.Outbox() {
		if ctx.Err() != nil {
			return false
		}
		if o.loop.superseded.Load() && m.Kind != trust.KindRevoke {
			empty = false // the other instance speaks for the key
			continue
		}
		reached := false
		for _, s := range m.Card.Servers {
			if err := o.put(ctx, s, m); err != nil {
				o.loop.log.Info("mail not delivered", "server", s.HostPort(), "err", err)
				continue
			}
			reached = true
		}
		if !reached {
			empty = false
			continue
		}
		if err := o.loop.store.Delivered(m.ID); err != nil {
			o.loop.log.Error("cannot note a delivery; it will be repeated", "err", err)
			empty = false
		}
	}
	return empty
}

func (o *outbox) put(ctx context.Context, s crypto.Server, m trust.Mail) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := relay.Dial(ctx, o.loop.dialConfig(s))
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Put(ctx, m.To.Fingerprint(), m.Sealed)
}
