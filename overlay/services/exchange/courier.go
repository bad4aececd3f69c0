package exchange

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// A courier delivers the queue: to each peer one item after the other, oldest
// first, to several peers at a time. A peer that does not answer is tried again
// after 2, 4, 8 ... 60 seconds, or when it is heard of. What a peer refuses for
// good is marked as failed and does not hold up what comes after it.
type courier struct {
	queue  *Queue
	peer   func(crypto.Fingerprint) (services.Peer, bool)
	dial   func(context.Context, services.Peer) (net.Conn, error)
	logger *slog.Logger
	slots  chan struct{} // deliveries at a time

	mu     sync.Mutex
	routes map[crypto.Fingerprint]chan struct{} // wakes the one that delivers there
}

const (
	deliveries = 4
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
)

func newCourier(q *Queue, c Config) *courier {
	dial := c.Dial
	if dial == nil {
		dial = func(ctx context.Context, p services.Peer) (net.Conn, error) {
			d := net.Dialer{Timeout: 10 * time.Second}
			return d.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Addr.ULA(), Port).String())
		}
	}
	return &courier{queue: q, peer: c.Peer, dial: dial, logger: c.Logger, slots: make(chan struct{}, deliveries),
		routes: map[crypto.Fingerprint]chan struct{}{}}
}

// run delivers until ctx ends.
func (c *courier) run(ctx context.Context) {
	var routes sync.WaitGroup
	defer routes.Wait()
	for {
		added := c.queue.added.next()
		for _, it := range c.queue.List() {
			if it.Failed != "" {
				continue
			}
			if wake, fresh := c.route(it.To); fresh {
				routes.Go(func() { c.serve(ctx, it.To, wake) })
			} else {
				c.kick(it.To)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-added:
		}
	}
}

func (c *courier) route(to crypto.Fingerprint) (wake chan struct{}, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wake, ok := c.routes[to]; ok {
		return wake, false
	}
	wake = make(chan struct{}, 1)
	c.routes[to] = wake
	return wake, true
}

// kick lets a route that waits try again now.
func (c *courier) kick(to crypto.Fingerprint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wake := c.routes[to]; wake != nil {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// serve delivers to one peer until nothing waits for it.
func (c *courier) serve(ctx context.Context, to crypto.Fingerprint, wake chan struct{}) {
	pause := firstRetry
	for {
		it, ok := c.next(to)
		if !ok {
			return
		}
		var retry bool
		select {
		case c.slots <- struct{}{}:
			retry = c.deliver(ctx, it)
			<-c.slots
		case <-ctx.Done():
			return
		}
		if !retry {
			pause = firstRetry
			continue
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-wake:
			timer.Stop()
			pause = firstRetry
		case <-timer.C:
			pause = min(2*pause, lastRetry)
		}
	}
}

// next is the oldest item for a peer. Without one the route ends, in the same
// moment in which that is found.
func (c *courier) next(to crypto.Fingerprint) (Item, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range c.queue.List() {
		if it.To == to && it.Failed == "" {
			return it, true
		}
	}
	delete(c.routes, to)
	return Item{}, false
}

// deliver tries one item and says whether to try it again.
func (c *courier) deliver(ctx context.Context, it Item) (retry bool) {
	peer, ok := c.peer(it.To)
	if !ok {
		return true // it may be trusted again; the queue shows it
	}
	f, err := c.queue.Open(it.ID)
	if err != nil {
		return false // dropped meanwhile
	}
	defer f.Close()
	client := NewClient("http://exchange", func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, peer) })
	defer client.Close()
	_, _, err = client.Send(ctx, Sending{Name: it.Name, Size: it.Size, SHA256: it.SHA256, Source: f})
	if e := new(services.Error); errors.As(err, &e) {
		if e.Retryable || ctx.Err() != nil {
			c.logger.Debug("a queued file could not be delivered yet", "peer", peer.Name, "name", it.Name, "err", err)
			return true
		}
		c.logger.Warn("a queued file was refused", "peer", peer.Name, "name", it.Name, "err", err)
		if err := c.queue.Fail(it.ID, e.Message); err != nil && !errors.Is(err, ErrNoItem) {
			return true
		}
		return false
	}
	c.logger.Info("a queued file was delivered", "peer", peer.Name, "name", it.Name, "bytes", it.Size)
	if err := c.queue.Drop(it.ID); err != nil && !errors.Is(err, ErrNoItem) {
		c.logger.Error("a delivered file stays in the queue", "name", it.Name, "err", err)
		return true
	}
	return false
}
