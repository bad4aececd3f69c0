package overlay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/overlay/firewall"
)

// A peer is the packet path's view of one trusted agent. The control loop makes
// it, publishes it in a snapshot and is the only one to change tx and policy;
// packet goroutines read them and write the counters.
type peer struct {
	firewall.Peer
	key  crypto.PublicKey
	addr netip.Addr

	tx     atomic.Pointer[transmit]        // nil: no session to send on
	policy atomic.Pointer[firewall.Policy] // nil: revoked

	rxBytes, txBytes     atomic.Uint64 // inner bytes
	rxPackets, txPackets atomic.Uint64 // what tells activity: control items do not count
	lastSeen             atomic.Int64  // boot clock, ns; 0: never
	awake                atomic.Bool   // the loop watches this peer's traffic
	roamed               atomic.Bool   // the loop has been told of a new source
	wanted               atomic.Bool   // the loop has been asked for a session
	items                atomic.Int32  // control items that wait for the loop
	fragID               atomic.Uint32
	stage                stage
}

// transmit is where packets to a peer go now. It is immutable.
type transmit struct {
	session *crypto.Session
	path    natt.Path
	also    natt.Path // second path during an upgrade or in doubt; zero: none
	budget  int       // largest outer IP packet on path, bytes
	room    int       // plaintext that fits one frame within budget
}

func (t *transmit) double() bool { return t.also != natt.Path{} }

// Sizes of what stands around an inner packet in an outer one.
const (
	outerIPv4 = 20 + 8
	outerIPv6 = 40 + 8
	// frameBase is the budget that every path is assumed to have.
	frameBase = 1200
	// plainBudget is what frames of one inner packet fill.
	plainBudget = 1500
)

// room is how many bytes of plaintext fit one frame on path p within a budget.
// It is a multiple of 16, so that a full frame needs no padding.
func room(p natt.Path, budget int) int {
	n := budget - outerIPv6 - crypto.Overhead
	if p.Remote.Addr().Is4() {
		n = budget - outerIPv4 - crypto.Overhead
	}
	if p.Relayed() {
		n -= relayHeader
	}
	return n &^ 15
}

// A stage holds the packets that wait for a session: bounded, oldest dropped
// first, so that what arrives after a slow handshake is what is wanted now.
type stage struct {
	mu      sync.Mutex
	packets [][]byte
	bytes   int
}

const (
	stagePackets = 128
	stageBytes   = 256 << 10
)

// push keeps a copy of p, a complete packet with a complete checksum. It
// reports how many older packets had to go.
func (s *stage) push(p []byte) (dropped int) {
	c := append(make([]byte, 0, len(p)), p...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets = append(s.packets, c)
	s.bytes += len(c)
	for len(s.packets) > stagePackets || s.bytes > stageBytes {
		s.bytes -= len(s.packets[0])
		s.packets[0] = nil
		s.packets = s.packets[1:]
		dropped++
	}
	return dropped
}

// take empties the stage.
func (s *stage) take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.packets
	s.packets, s.bytes = nil, 0
	return p
}

// A sessionEntry is a session in the receiver's table.
type sessionEntry struct {
	*crypto.Session
	peer      *peer
	confirmed atomic.Bool // the peer has shown that it holds the keys
	frags     fragments

	// Below: written by the control loop only, before the entry is published.
	slot      [32]byte // which pair state made it
	initiated bool     // by us
	created   time.Duration
}

// A sessionTable finds sessions by receiver index. Indices are drawn so that
// their low bits are unique in the table, so a lookup is one load and one
// comparison, and the table changes in place while packets are read.
type sessionTable struct {
	mask    uint32
	entries []atomic.Pointer[sessionEntry]
}

func newSessionTable(size int) *sessionTable {
	return &sessionTable{mask: uint32(size - 1), entries: make([]atomic.Pointer[sessionEntry], size)}
}

func (t *sessionTable) get(index uint32) *sessionEntry {
	e := t.entries[index&t.mask].Load()
	if e == nil || e.Local() != index {
		return nil
	}
	return e
}

// free reports whether an entry with this index could be put.
func (t *sessionTable) free(index uint32) bool { return t.entries[index&t.mask].Load() == nil }

func (t *sessionTable) put(e *sessionEntry) { t.entries[e.Local()&t.mask].Store(e) }

func (t *sessionTable) remove(e *sessionEntry) {
	t.entries[e.Local()&t.mask].CompareAndSwap(e, nil)
}

// A snapshot is what the packet goroutines know. The control loop publishes a
// new one when peers come or go; nobody changes a published one, except that
// sessions come and go in their table.
type snapshot struct {
	peers    map[uint32]*peer // by node ID
	sessions *sessionTable
	sockets  []natt.PacketConn       // by number; 0 is not used here, nil: closed
	servers  map[netip.AddrPort]bool // addresses of the rendezvous servers that we deal with
}
