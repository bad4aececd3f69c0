package natlab

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Config describes a Net. The zero value is good.
type Config struct {
	Delay time.Duration // one way, of each uplink to the core; 10 ms if 0, none if negative
	Seed  uint64        // of all random choices
	Queue int           // datagrams that a socket holds for its reader; 2048 if 0
	NoGRO bool          // every datagram is read as a message of its own
}

const (
	defaultDelay = 10 * time.Millisecond
	defaultQueue = 2048
	// maxFlight bounds the datagrams under way in the whole Net.
	maxFlight = 1 << 16
)

// A Net is an Internet. Its methods, and those of its hosts and routers, may be used from any goroutine.
type Net struct {
	config Config

	mu       sync.Mutex
	rand     *rand.Rand
	core     segment
	names    map[string]*Host
	nodes    int // ever made
	events   eventHeap
	sequence uint64
	flight   int
	cuts     map[cut]struct{}
	counts   Counts
	observe  func(Event)
	filter   func(from, to netip.AddrPort, b []byte) bool
	closers  map[interface{ shut() }]struct{} // open sockets, listeners and streams
	closed   bool

	wake chan struct{} // an event comes before all others
	end  chan struct{}
	done chan struct{}
}

// New makes a Net that runs until Close.
func New(c Config) *Net {
	switch {
	case c.Delay == 0:
		c.Delay = defaultDelay
	case c.Delay < 0:
		c.Delay = 0
	}
	if c.Queue == 0 {
		c.Queue = defaultQueue
	}
	n := &Net{
		config:  c,
		rand:    rand.New(rand.NewPCG(c.Seed, 0x6e61746c6162)),
		names:   map[string]*Host{},
		cuts:    map[cut]struct{}{},
		closers: map[interface{ shut() }]struct{}{},
		wake:    make(chan struct{}, 1),
		end:     make(chan struct{}),
		done:    make(chan struct{}),
	}
	n.core.nodes = map[netip.Addr]*node{}
	n.counts.Dropped = map[Reason]uint64{}
	go n.run()
	return n
}

// Close closes all sockets and streams and returns when the Net stands still.
func (n *Net) Close() {
	n.mu.Lock()
	if !n.closed {
		n.closed = true
		close(n.end)
		for c := range n.closers {
			c.shut()
		}
	}
	n.mu.Unlock()
	<-n.done
}

// Reason says why a datagram was dropped.
type Reason string

// The reasons.
const (
	Lost      Reason = "lost"         // by the loss rate of an uplink
	IsCut     Reason = "cut"          // by Cut and the like
	Refused   Reason = "refused"      // by a router: no mapping, or not permitted
	NoRoute   Reason = "no route"     // nobody has the address
	NoSocket  Reason = "no socket"    // nobody has the port
	TooBig    Reason = "too big"      // for an uplink that is not the sender's
	QueueFull Reason = "queue full"   // of the socket, or of the Net
	Filtered  Reason = "filter"       // by the function given to Filter
	Expired   Reason = "expired"      // its time to live was too short
	Truncated Reason = "short buffer" // the reader's buffer was too small
)

// Counts counts datagrams. Dropped is counted for the whole Net only.
type Counts struct {
	Sent, SentBytes         uint64
	Received, ReceivedBytes uint64
	Dropped                 map[Reason]uint64
}

// Counts returns what has passed so far.
func (n *Net) Counts() Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.counts
	c.Dropped = map[Reason]uint64{}
	for r, k := range n.counts.Dropped {
		c.Dropped[r] = k
	}
	return c
}

// EventKind says what happened to a datagram.
type EventKind uint8

// The kinds of events.
const (
	Sent EventKind = iota
	Received
	Dropped
)

// An Event is one step of a datagram. Addresses are as seen at that place: translated or not yet. Data is never changed.
type Event struct {
	Kind     EventKind
	Reason   Reason // if dropped
	Sender   *Host
	Receiver *Host // if received
	From, To netip.AddrPort
	Data     []byte
}

// Observe calls f for each event from now on, nil for nobody. f runs inside the Net and must not call it.
func (n *Net) Observe(f func(Event)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observe = f
}

// Capture calls f for each datagram that is received from now on, with the addresses that the receiver sees. It replaces
// what Observe was given. f must not call the Net.
func (n *Net) Capture(f func(from, to netip.AddrPort, b []byte)) {
	n.Observe(func(e Event) {
		if e.Kind == Received {
			f(e.From, e.To, e.Data)
		}
	})
}

// Filter lets f decide about each datagram as its host sends it: false drops it. nil drops nothing. f must not call the Net.
func (n *Net) Filter(f func(from, to netip.AddrPort, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = f
}

func (n *Net) event(kind EventKind, reason Reason, p *packet, at *Host) {
	if n.observe != nil {
		n.observe(Event{kind, reason, p.origin, at, p.src, p.dst, p.data})
	}
}

func (n *Net) drop(p *packet, why Reason) {
	if p.dial != nil {
		return // its host will try again
	}
	n.flight--
	n.counts.Dropped[why]++
	n.event(Dropped, why, p, nil)
}

// An event is a step that is due at a time; steps due at the same time are taken in the order they were scheduled.
type event struct {
	at       time.Time
	sequence uint64
	step     func()
}

type eventHeap []event

func (h eventHeap) Len() int      { return len(h) }
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].sequence < h[j].sequence
}

func (h *eventHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = event{}
	*h = (*h)[:last]
	return e
}

// after schedules a step, which will run with n.mu held.
func (n *Net) after(d time.Duration, step func()) {
	n.sequence++
	e := event{time.Now().Add(d), n.sequence, step}
	heap.Push(&n.events, e)
	if n.events[0].sequence == e.sequence {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

func (n *Net) run() {
	defer close(n.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(n.advance())
		select {
		case <-timer.C:
		case <-n.wake:
		case <-n.end:
			return
		}
	}
}

// advance takes all steps that are due and returns how long the next one can wait.
func (n *Net) advance() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.events) > 0 && !n.closed {
		if wait := time.Until(n.events[0].at); wait > 0 {
			return wait
		}
		heap.Pop(&n.events).(event).step()
	}
	return time.Hour
}
