package overlay

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/overlay/services"
)

// serve runs what serves peers and programs until ctx ends, and then calls end: what
// carries the bytes goes on until the last of them is sent.
func (n *Node) serve(ctx context.Context, g *errgroup.Group, end func()) {
	var running sync.WaitGroup
	running.Add(2)
	g.Go(func() error { defer running.Done(); n.serving.group.Run(ctx); return nil })
	g.Go(func() error { defer running.Done(); return n.runProxy(ctx) })
	g.Go(func() error {
		defer end()
		<-ctx.Done()
		late := time.NewTimer(services.DrainTime)
		defer late.Stop()
		running.Wait()
		n.flush(late.C)
		return nil
	})
}

// flush waits until the peers have what closed connections were to bring them.
func (n *Node) flush(late <-chan time.Time) {
	tick := time.NewTicker(flushTick)
	defer tick.Stop()
	for n.unsent() {
		select {
		case <-late:
			return
		case <-n.loop.done: // there is no way to peers any more
			return
		case <-tick.C:
		}
	}
}

const flushTick = 10 * time.Millisecond

// unsent says whether a connection of ours was closed and has bytes that its peer does
// not have.
func (n *Node) unsent() bool {
	if s := n.stack(); s != nil {
		return s.Unsent()
	}
	return unsent(n.plane.own)
}
