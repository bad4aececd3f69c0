package relay

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/natt"
)

// DatagramsPath is where a server takes carriers.
const DatagramsPath = "/v1/datagrams"

const (
	carrierBatch   = 4
	carrierQueue   = 64 << 10 // bytes that wait for the stream before the oldest are dropped (stall.go)
	carrierMessage = 16 << 10 // bytes of one WebSocket message, unless one datagram is larger: a TLS record
	carrierPrefix  = 2
	maxDatagram    = 65507
)

// A Carrier carries datagrams to and from one address inside a WebSocket, where
// UDP does not get through. It is a natt.PacketConn whose only remote address is
// the one given when it was made. It keeps what is best about UDP: what the stream
// does not take in time is dropped, oldest first, instead of growing old in a queue.
//
// It authenticates nothing. When the stream ends the Carrier behaves as if it had
// been closed; Err says why.
type Carrier struct {
	ws            *websocket.Conn
	web           *web     // of the dialling side
	raw           net.Conn // beneath ws, nil if not known
	local, remote netip.AddrPort
	limit         int // of the queue
	since         time.Time

	in      *bufio.Reader
	open    bool // in is inside a message
	next    int  // size of the datagram that comes next in in, 0 if not read yet
	heard   atomic.Int64
	ctx     context.Context
	cancel  context.CancelCauseFunc
	writer  chan struct{} // closed when the writer has ended
	dropped atomic.Uint64
	closing sync.Once

	mu    sync.Mutex
	queue []byte // datagrams that wait, each after its size
	head  int    // where they begin in queue
	more  chan struct{}
	// writing says that the writer has some in hand; idle is for it to say that it
	// has not any more.
	writing bool
	idle    chan struct{}
	stall   stall
}

// DialCarrier opens a carrier to cfg.Server over a route. remote is the address
// that its messages have: that by which the caller knows the server.
func DialCarrier(ctx context.Context, cfg DialConfig, r Route, remote netip.AddrPort) (*Carrier, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	fail := func(err error) (*Carrier, error) {
		return nil, fmt.Errorf("relay: server %s: %w", cfg.Server.HostPort(), r.over(plain(err)))
	}
	w, err := newWeb(ctx, cfg, r)
	if err != nil {
		return fail(err)
	}
	ws, answer, err := websocket.Dial(ctx, w.url(DatagramsPath), &websocket.DialOptions{HTTPClient: &w.client})
	if err != nil {
		w.close()
		if answer != nil {
			err = fmt.Errorf("what answers is no rendezvous server, or does not take carriers now: HTTP status %s", answer.Status)
		}
		return fail(slow(ctx, err))
	}
	c := newCarrier(ws, remote, carrierQueue)
	c.web, c.raw = w, w.conn
	if a, err := netip.ParseAddrPort(c.raw.LocalAddr().String()); err == nil {
		c.local = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return c, nil
}

// NewCarrier makes the server's end of a carrier.
func NewCarrier(ws *websocket.Conn, local, remote netip.AddrPort) *Carrier {
	c := newCarrier(ws, remote, carrierQueue)
	c.local = local
	return c
}

func newCarrier(ws *websocket.Conn, remote netip.AddrPort, limit int) *Carrier {
	ws.SetReadLimit(1 << 17)
	c := &Carrier{
		ws: ws, remote: remote, limit: limit, since: time.Now(), in: bufio.NewReaderSize(nil, 16<<10),
		writer: make(chan struct{}), more: make(chan struct{}, 1), idle: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	go c.write()
	return c
}

// LocalAddr returns the local end of the stream, zero if it is not known.
func (c *Carrier) LocalAddr() netip.AddrPort { return c.local }

// BatchSize implements natt.PacketConn.
func (c *Carrier) BatchSize() int { return carrierBatch }

// Offload implements natt.PacketConn.
func (c *Carrier) Offload() natt.Offload { return natt.Offload{Batch: true} }

// Dropped returns how many datagrams had to go because the stream was too slow.
func (c *Carrier) Dropped() uint64 { return c.dropped.Load() }

// Done is closed when the carrier is.
func (c *Carrier) Done() <-chan struct{} { return c.ctx.Done() }

// Err returns why the carrier ended: net.ErrClosed after Close, nil before any end.
func (c *Carrier) Err() error { return context.Cause(c.ctx) }

// Heard returns when the last message came, in nanoseconds since 1970; 0 for none.
func (c *Carrier) Heard() int64 { return c.heard.Load() }

// Since returns when the carrier was made.
func (c *Carrier) Since() time.Time { return c.since }

// TLSWarning is what Control.TLSWarning is, as far as the certificate alone tells.
func (c *Carrier) TLSWarning() string {
	if c.web == nil {
		return ""
	}
	return c.web.tlsWarning(nil)
}

// Close ends the carrier. What waits in the queue is lost.
func (c *Carrier) Close() error {
	c.end(net.ErrClosed)
	<-c.writer
	return nil
}

// Drain waits until what was queued has gone to the stream, at most for d.
func (c *Carrier) Drain(d time.Duration) {
	late := time.NewTimer(d)
	defer late.Stop()
	for {
		c.mu.Lock()
		empty, done := len(c.queue) == 0 && !c.writing, c.idle
		c.mu.Unlock()
		if empty {
			return
		}
		select {
		case <-done:
		case <-late.C:
			return
		case <-c.ctx.Done():
			return
		}
	}
}

// end closes the stream, once.
func (c *Carrier) end(why error) {
	c.closing.Do(func() {
		c.cancel(why)
		if c.raw != nil {
			c.raw.Close() // so that saying goodbye cannot block
		}
		c.ws.CloseNow()
		if c.web != nil {
			c.web.close()
		}
	})
}

// WriteBatch implements natt.PacketConn. It never waits for the stream.
func (c *Carrier) WriteBatch(m []natt.Message) (int, error) {
	if c.ctx.Err() != nil {
		return 0, net.ErrClosed
	}
	var fail *natt.WriteError
	c.mu.Lock()
	for i := range m {
		if err := c.put(&m[i]); err != nil {
			if fail == nil {
				fail = &natt.WriteError{Addr: m[i].Addr, Err: err}
			}
			fail.Failed = append(fail.Failed, i)
		}
	}
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	if fail != nil {
		return fail.Failed[0], fail
	}
	return len(m), nil
}

// put queues the datagrams of one message. c.mu is held.
func (c *Carrier) put(m *natt.Message) error {
	switch {
	case !m.Addr.IsValid():
		return syscall.EDESTADDRREQ
	case m.Addr != c.remote:
		return syscall.ENETUNREACH
	}
	b, size := m.Buf, m.Segment
	if size <= 0 || size > len(b) {
		size = len(b)
	}
	if size > maxDatagram {
		return syscall.EMSGSIZE
	}
	for len(b) > 0 {
		d := b[:min(size, len(b))]
		b = b[len(d):]
		c.queue = binary.BigEndian.AppendUint16(c.queue, uint16(len(d)))
		c.queue = append(c.queue, d...)
		for n := len(c.queue) - c.head; n > carrierPrefix+len(d) && c.stall.over(n, c.limit, c.writing); n = len(c.queue) - c.head {
			c.head += carrierPrefix + int(binary.BigEndian.Uint16(c.queue[c.head:]))
			c.dropped.Add(1)
		}
		if c.head > c.limit/2 { // the front half is free: move the rest there
			c.queue = c.queue[:copy(c.queue, c.queue[c.head:])]
			c.head = 0
		}
	}
	return nil
}

// take moves what waits, at most one message, from the queue to dst.
func (c *Carrier) take(dst []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for rest := c.queue[c.head:]; len(rest) > n; {
		k := carrierPrefix + int(binary.BigEndian.Uint16(rest[n:]))
		if n > 0 && n+k > carrierMessage {
			break
		}
		n += k
	}
	c.stall.wrote(c.writing, len(c.queue)-c.head-n, c.limit)
	c.stall.began = time.Now()
	if c.writing = n > 0; !c.writing {
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
	dst = append(dst, c.queue[c.head:c.head+n]...)
	if c.head += n; c.head == len(c.queue) {
		c.queue, c.head = c.queue[:0], 0
	}
	return dst
}

// write sends what waits, as much as there is at a time.
func (c *Carrier) write() {
	defer close(c.writer)
	b := make([]byte, 0, carrierMessage)
	for {
		if b = c.take(b[:0]); len(b) == 0 {
			select {
			case <-c.more:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		if err := c.ws.Write(c.ctx, websocket.MessageBinary, b); err != nil {
			c.end(fmt.Errorf("relay: carrier: %w", err))
			return
		}
	}
}

// ReadBatch implements natt.PacketConn.
func (c *Carrier) ReadBatch(m []natt.Message) (int, error) {
	if c.ctx.Err() != nil {
		return 0, net.ErrClosed
	}
	n, err := c.read(m)
	if err != nil {
		c.end(fmt.Errorf("relay: carrier: %w", err))
		return 0, net.ErrClosed
	}
	c.heard.Store(time.Now().UnixNano())
	return n, nil
}

// read fills messages with what one WebSocket message brings: datagrams of one
// size that follow each other are a run.
func (c *Carrier) read(m []natt.Message) (n int, err error) {
	for {
		if err := c.size(n == 0); err != nil {
			return 0, err
		}
		if c.next == 0 {
			return n, nil // the end of what is here
		}
		if last := n - 1; last >= 0 && continues(&m[last], c.next) {
			r := &m[last]
			if r.Segment == 0 {
				r.Segment = r.N
			}
			if _, err := io.ReadFull(c.in, r.Buf[r.N:r.N+c.next]); err != nil {
				return 0, err
			}
			r.N += c.next
			c.next = 0
			continue
		}
		if n == len(m) {
			return n, nil
		}
		d := &m[n]
		d.N, d.Segment, d.Addr, d.Local = 0, 0, c.remote, c.local.Addr()
		n++
		if c.next > len(d.Buf) {
			_, err = c.in.Discard(c.next)
		} else {
			d.N, err = io.ReadFull(c.in, d.Buf[:c.next])
		}
		if err != nil {
			return 0, err
		}
		c.next = 0
	}
}

// continues says whether a datagram of this size belongs to the run in m.
func continues(m *natt.Message, size int) bool {
	whole := m.Segment
	if whole == 0 {
		whole = m.N
	}
	return m.N > 0 && m.N%whole == 0 && size <= whole && m.N+size <= min(len(m.Buf), natt.MaxRun)
}

var errCarrier = errors.New("not a message of datagrams")

// size reads the size of the next datagram. With wait it waits for the next
// message; without it leaves c.next 0 at the end of this one.
func (c *Carrier) size(wait bool) error {
	for c.next == 0 {
		if !c.open {
			if !wait {
				return nil
			}
			kind, r, err := c.ws.Reader(c.ctx)
			if err != nil {
				return err
			}
			if kind != websocket.MessageBinary {
				return errCarrier
			}
			c.in.Reset(r)
			c.open = true
		}
		hi, err := c.in.ReadByte()
		if errors.Is(err, io.EOF) {
			c.open = false
			continue
		}
		if err != nil {
			return err
		}
		lo, err := c.in.ReadByte()
		if err != nil {
			return errCarrier
		}
		if c.next = int(hi)<<8 | int(lo); c.next == 0 {
			return errCarrier
		}
	}
	return nil
}
