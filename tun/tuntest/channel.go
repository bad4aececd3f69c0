package tuntest

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/pilotnet/pilot/tun"
)

// Options say what a Channel pretends to be. Zero fields have defaults: name
// "chan0", MTU 1408, room for 256 packets in each direction, no offloads.
type Options struct {
	Name    string
	MTU     int
	Depth   int // packets that wait in each direction
	Offload tun.Offload
}

const batchSize = 64

// A Channel is a tun.Device without a kernel. A nil error of Write means that
// the packets wait for Receive; when Depth packets wait, Write drops and returns
// an error, like an interface with a full queue.
type Channel struct {
	name    string
	mtu     int
	offload tun.Offload
	in, out chan tun.Packet // both carry packets with memory of their own
	done    chan struct{}
	once    sync.Once

	wmu  sync.Mutex
	flat tun.Flattener
}

// New makes a Channel.
func New(o Options) *Channel {
	c := &Channel{name: o.Name, mtu: o.MTU, offload: o.Offload, done: make(chan struct{})}
	if c.name == "" {
		c.name = "chan0"
	}
	if c.mtu == 0 {
		c.mtu = 1408
	}
	depth := o.Depth
	if depth == 0 {
		depth = 256
	}
	c.in = make(chan tun.Packet, depth)
	c.out = make(chan tun.Packet, depth)
	return c
}

// Name implements tun.Device.
func (c *Channel) Name() string { return c.name }

// MTU implements tun.Device.
func (c *Channel) MTU() int { return c.mtu }

// BatchSize implements tun.Device.
func (c *Channel) BatchSize() int { return batchSize }

// Offload implements tun.Device.
func (c *Channel) Offload() tun.Offload { return c.offload }

// Read implements tun.Device.
func (c *Channel) Read(p []tun.Packet) (int, error) {
	p = p[:min(len(p), batchSize)]
	if len(p) == 0 {
		return 0, nil
	}
	select {
	case <-c.done:
		return 0, os.ErrClosed
	default:
	}
	select {
	case <-c.done:
		return 0, os.ErrClosed
	case p[0] = <-c.in:
	}
	for n := 1; n < len(p); n++ {
		select {
		case p[n] = <-c.in:
		default:
			return n, nil
		}
	}
	return len(p), nil
}

// Write implements tun.Device.
func (c *Channel) Write(p []tun.Packet) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var first error
	for i := range p {
		if err := c.flat.Flatten(p[i], c.offload, c.put); err != nil {
			if err == os.ErrClosed {
				return err
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

func (c *Channel) put(p tun.Packet) error {
	select {
	case <-c.done:
		return os.ErrClosed
	default:
	}
	select {
	case c.out <- clone(p):
		return nil
	default:
		return fmt.Errorf("tuntest: write: %d packets wait already", cap(c.out))
	}
}

// Close implements tun.Device.
func (c *Channel) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// Inject makes a packet come out of Read, as if a program on the host had sent
// it. It copies p and waits while Depth packets wait already.
func (c *Channel) Inject(p tun.Packet) error {
	select {
	case <-c.done:
		return os.ErrClosed
	case c.in <- clone(p):
		return nil
	}
}

// Receive returns the next packet that was written to the device. What was
// written before Close can still be received after it.
func (c *Channel) Receive(ctx context.Context) (tun.Packet, error) {
	select {
	case p := <-c.out:
		return p, nil
	default:
	}
	select {
	case p := <-c.out:
		return p, nil
	case <-c.done:
		return tun.Packet{}, os.ErrClosed
	case <-ctx.Done():
		return tun.Packet{}, ctx.Err()
	}
}

// Waiting is the number of packets that were written and not yet received.
func (c *Channel) Waiting() int { return len(c.out) }

// clone copies a packet, Tail included, into memory of its own that has the
// room tun.Device promises.
func clone(p tun.Packet) tun.Packet {
	n := p.Len()
	buf := make([]byte, tun.Headroom+n+tun.Tailroom)
	b := append(buf[tun.Headroom:tun.Headroom], p.Data...)
	for _, t := range p.Tail {
		b = append(b, t...)
	}
	return tun.Packet{Data: b, Buf: buf, SegmentSize: p.SegmentSize, Partial: p.Partial}
}
