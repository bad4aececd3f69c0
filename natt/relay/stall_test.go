package relay

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
)

// queued is a carrier whose stream is the test.
func queued() *Carrier {
	c := &Carrier{remote: netip.MustParseAddrPort("192.0.2.1:443"), limit: carrierQueue, more: make(chan struct{}, 1), idle: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// offer gives a carrier a thousand packets a second for that time.
func (c *Carrier) offer(t *testing.T, d time.Duration, size int) {
	t.Helper()
	for range d / time.Millisecond {
		if _, err := c.WriteBatch([]natt.Message{{Buf: make([]byte, size), Addr: c.remote}}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
}

// A stream that stands still for most of a second, since TCP repeats what was lost, loses
// nothing of a thousand packets a second, and afterwards its queue is as short as before.
func TestStalledStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := queued()
		for range 50 { // it is fast
			c.offer(t, 10*time.Millisecond, 200)
			for len(c.take(nil)) > 0 {
			}
		}
		c.offer(t, time.Millisecond, 200)
		c.take(nil) // is being written
		c.offer(t, 900*time.Millisecond, 200)
		if n := c.Dropped(); n > 0 {
			t.Errorf("%d dropped in a stall of 0.9 s", n)
		}
		c.offer(t, 3*time.Second, 200)
		if n := len(c.queue) - c.head; n > stallRoom*carrierQueue || c.Dropped() == 0 {
			t.Errorf("%d bytes wait for a stream that is dead, %d dropped", n, c.Dropped())
		}
		for len(c.take(nil)) > 0 {
		}
		c.offer(t, 50*time.Millisecond, 4000)
		if n := len(c.queue) - c.head; n > carrierQueue {
			t.Errorf("%d bytes wait for a stream that is fast again", n)
		}
	})
}

// A stream that is always too slow has no more waiting for it than ever.
func TestSlowStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := queued()
		for n := range 100 { // a message in 130 ms: 1 Mbit/s
			c.take(nil)
			c.offer(t, 130*time.Millisecond, 200)
			if waits := len(c.queue) - c.head; n > 20 && waits > carrierQueue {
				t.Fatalf("%d bytes wait after %d messages", waits, n)
			}
		}
		if c.Dropped() == 0 {
			t.Error("nothing was dropped")
		}
	})
}
