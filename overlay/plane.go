package overlay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/tun"
)

// relayHeader is what a relay frame adds before the frame it carries
// (natt/relay.FrameOverhead, asserted equal in a test).
const relayHeader = 12

// A plane is what the packet goroutines and the control loop share. The loop
// publishes snapshots, the packet goroutines read them and report events.
type plane struct {
	own      netip.Addr
	prefix   [12]byte // that every overlay address starts with
	device   tun.Device
	conn     natt.PacketConn // the main socket, number 0
	clock    Clock
	snapshot atomic.Pointer[snapshot]
	tags     *tagTable
	waiting  sync.Map // of our INITs under way, by index: RESPs to others stop at the reader
	firewall *firewall.Firewall
	resolver *dns.Responder // nil: nobody answers for names
	drops    drops
	events   chan event // from peers whose packets were authenticated, and from this host
	outside  chan event // from anybody: a flood of these leaves the others room
	icmp     icmpLimiter
}

// An event is what a packet goroutine tells the loop. The channel is bounded;
// when it is full the event is dropped, as a packet would be: every sender of
// one repeats.
type event struct {
	kind  eventKind
	peer  *peer
	entry *sessionEntry
	path  natt.Path
	item  itemKind
	body  []byte // owned by the event
	knock []*knock
}

type eventKind uint8

const (
	evWant    eventKind = iota // a packet waits for a session with peer
	evAwake                    // traffic with peer has begun
	evConfirm                  // first DATA of entry came over path
	evRoam                     // DATA of entry came over another path than we send on
	evItem                     // control item of entry came over path
	evInit                     // body is an INIT whose tag knock matched
	evResp                     // body is a RESP
	evServer                   // body is a message of a rendezvous server at path.Remote
	evTooBig                   // a frame of len(body) bytes was too large for path's link
)

// maxItems is how many control items of one peer may wait for the loop: a
// sixteenth of the channel, so that no peer takes it from the others.
const maxItems = 64

// tellItem hands a control item to the loop, unless too many of this peer wait
// there already. Nothing is copied for one that is refused.
func (p *plane) tellItem(e *sessionEntry, from natt.Path, kind itemKind, body []byte) {
	waiting := &e.peer.items
	if waiting.Add(1) > maxItems {
		waiting.Add(-1)
		p.drops.add(dropInLoop)
		return
	}
	if !p.tell(event{kind: evItem, entry: e, path: from, item: kind, body: append([]byte(nil), body...)}) {
		waiting.Add(-1)
	}
}

// take notes that the loop has an event in hand.
func (e *event) take() {
	if e.kind == evItem {
		e.entry.peer.items.Add(-1)
	}
}

// tell hands an event to the loop and reports whether there was room.
func (p *plane) tell(e event) bool {
	to := p.events
	switch e.kind {
	case evInit, evResp, evServer:
		to = p.outside
	}
	select {
	case to <- e:
		return true
	default:
		p.drops.add(dropInLoop)
		return false
	}
}

// want asks the loop for a session, once until the loop has answered.
func (p *plane) want(to *peer) {
	if to.wanted.CompareAndSwap(false, true) && !p.tell(event{kind: evWant, peer: to}) {
		to.wanted.Store(false)
	}
}

// wake tells the loop that traffic with a peer has begun, once until it sleeps.
func (p *plane) wake(to *peer) {
	if !to.awake.Load() && to.awake.CompareAndSwap(false, true) && !p.tell(event{kind: evAwake, peer: to}) {
		to.awake.Store(false)
	}
}

// socket returns the socket of a number, nil if it is closed.
func (p *plane) socket(n uint16) natt.PacketConn {
	if n == 0 {
		return p.conn
	}
	if s := p.snapshot.Load().sockets; int(n) < len(s) {
		return s[n]
	}
	return nil
}

// peerOf finds a peer by the inner destination address.
func (s *snapshot) peerOf(dst []byte) *peer {
	return s.peers[uint32(dst[12])<<24|uint32(dst[13])<<16|uint32(dst[14])<<8|uint32(dst[15])]
}

// An icmpLimiter bounds the errors that we send to our own host (RFC 4443 2.4 f).
type icmpLimiter struct {
	last   atomic.Int64
	tokens atomic.Int64
}

const (
	icmpBurst  = 64
	icmpPeriod = 10 * time.Millisecond
)

func (l *icmpLimiter) allow(now time.Duration) bool {
	last := l.last.Load()
	if n := (int64(now) - last) / int64(icmpPeriod); n > 0 && l.last.CompareAndSwap(last, int64(now)) {
		l.tokens.Store(min(icmpBurst, max(l.tokens.Load(), 0)+n))
	}
	return l.tokens.Add(-1) >= 0
}
