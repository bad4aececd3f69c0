package firewall

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/trust"
)

// The flow table remembers who opened a flow, so that answers pass without a
// grant. It is the one mutable structure that all packet goroutines share:
// fixed in size, never allocating, one atomic word an entry. An entry is found
// by a keyed 64-bit hash of the five-tuple, of which 16 bits choose the set and
// 32 are compared: a trusted peer that guesses has a chance of 2^-32 a packet
// and set way to hit a live entry, and cannot choose its hash.
//
//	63      32 31       17 16      15       0
//	[ hash 32 ][version 15][opener][seen 16  ]
//
// version is that of the peer's policy when the entry was made or last
// refreshed under the current policy: after a change of policy the old entries
// admit nothing, but they still remember that the peer opened them, so that our
// side's own retransmissions do not turn a withdrawn flow into one of ours.
const (
	flowSets    = 1 << 13
	flowWays    = 8
	flowTick    = 2 * time.Second
	flowIdleTCP = uint16(2 * time.Hour / flowTick)
	flowIdleUDP = uint16(3 * time.Minute / flowTick)
	flowAhead   = 30 // ticks that the clock of one goroutine may be before the other's
)

type flowTable struct {
	seed maphash.Seed
	sets [flowSets][flowWays]atomic.Uint64
}

// opener says which side's packet made the flow.
type opener uint64

const (
	byUs   opener = 0
	byPeer opener = 1
)

func newFlowTable() *flowTable { return &flowTable{seed: maphash.MakeSeed()} }

// A flowKey is a five-tuple as this agent sees it; the local address is always
// its own.
type flowKey struct {
	peer          uint32 // node ID
	proto         uint8
	local, remote uint16
}

func (t *flowTable) hash(k flowKey) uint64 {
	var b [9]byte
	binary.LittleEndian.PutUint32(b[0:], k.peer)
	b[4] = k.proto
	binary.LittleEndian.PutUint16(b[5:], k.local)
	binary.LittleEndian.PutUint16(b[7:], k.remote)
	return maphash.Bytes(t.seed, b[:])
}

// A flowMemo remembers one flow that passed: as long as policy, tick and the
// flow's entry are still the same, its next packet passes too and would change
// nothing in the table. So packets of a run cost one hash together.
type flowMemo struct {
	key   flowKey
	pol   *Policy
	entry flowEntry
	now   uint16
	out   bool // for packets that we send
}

// flowMemos is how many flows a goroutine remembers.
const flowMemos = 8

func memoOf(h *Header) *flowMemo { return &h.memos[(h.src^h.dst)%flowMemos] }

func (m *flowMemo) holds(k flowKey, out bool, pol *Policy, now uint16) bool {
	return m.pol == pol && m.key == k && m.out == out && m.now == now && m.entry.at.Load() == m.entry.word
}

// keep remembers a flow that passed and what its entry says.
func (m *flowMemo) keep(k flowKey, out bool, pol *Policy, now uint16, e flowEntry) {
	*m = flowMemo{key: k, out: out, pol: pol, entry: e, now: now}
}

// A flowEntry is an entry of the table and its word, as one look at it found it.
type flowEntry struct {
	at   *atomic.Uint64
	word uint64
}

// tick is now in units of flowTick. It wraps after 36 hours, far above every
// idle limit; sweep takes out what is idle long before it could look young
// again.
func tick(now time.Duration) uint16 { return uint16(now / flowTick) }

// ageOf is how many ticks ago an entry was seen. Each packet goroutine reads the
// clock once a batch, so the other may have seen it a little after now.
func ageOf(seen, now uint16) uint16 {
	if age := now - seen; age < 1<<16-flowAhead {
		return age
	}
	return 0
}

const (
	flowOpener  = 1 << 16
	flowVersion = 0x7fff << 17
)

func packFlow(h uint64, version uint64, o opener, seen uint16) uint64 {
	w := h&^0xffffffff | version<<17&flowVersion | uint64(o)<<16 | uint64(seen)
	if w == 0 { // the empty entry
		w = 1
	}
	return w
}

func idleLimit(proto uint8) uint16 {
	if proto == trust.ProtoTCP {
		return flowIdleTCP
	}
	return flowIdleUDP
}

// find returns the entry of k and its word, or nil.
func (t *flowTable) find(h uint64, proto uint8, now uint16) (*atomic.Uint64, uint64) {
	set := &t.sets[h%flowSets]
	for i := range set {
		w := set[i].Load()
		if w != 0 && (w^h)>>32 == 0 && ageOf(uint16(w), now) <= idleLimit(proto) {
			return &set[i], w
		}
	}
	return nil, 0
}

// outbound records a packet that we send. A flow that the peer opened stays the
// peer's, unless opens says that this packet opens it anew. One that is not known
// becomes ours if it may; otherwise the entry returned is the zero one.
func (t *flowTable) outbound(k flowKey, version uint64, now uint16, opens, may bool) flowEntry {
	h := t.hash(k)
	e, w := t.find(h, k.proto, now)
	n := packFlow(h, version, byUs, now)
	if e == nil && !may {
		return flowEntry{}
	}
	if e == nil {
		return t.insert(h, n, now)
	}
	o := opener(w & flowOpener >> 16)
	if o == byPeer && !opens {
		return flowEntry{e, w}
	}
	if n != w {
		e.CompareAndSwap(w, n)
	}
	return flowEntry{e, n}
}

// inbound says whether the flow was opened by us under the current policy, and
// refreshes it.
func (t *flowTable) inbound(k flowKey, version uint64, now uint16) (flowEntry, bool) {
	h := t.hash(k)
	e, w := t.find(h, k.proto, now)
	if e == nil || w&flowOpener != 0 || w&flowVersion != version<<17&flowVersion {
		return flowEntry{}, false
	}
	n := packFlow(h, version, byUs, now)
	if n != w {
		e.CompareAndSwap(w, n)
	}
	return flowEntry{e, n}, true
}

// admitted records a packet that the peer sent to a port it was granted.
func (t *flowTable) admitted(k flowKey, version uint64, now uint16) flowEntry {
	h := t.hash(k)
	e, w := t.find(h, k.proto, now)
	n := packFlow(h, version, byPeer, now)
	if e == nil {
		return t.insert(h, n, now)
	}
	if w&flowOpener == 0 {
		return flowEntry{e, w}
	}
	if w != n {
		e.CompareAndSwap(w, n)
	}
	return flowEntry{e, n}
}

// known says whether a live flow with this key exists under the current
// policy, whoever opened it: what an ICMPv6 error must quote.
func (t *flowTable) known(k flowKey, version uint64, now uint16) bool {
	e, w := t.find(t.hash(k), k.proto, now)
	return e != nil && w&flowVersion == version<<17&flowVersion
}

// insert takes a free entry of the set, or the one that has been idle longest.
func (t *flowTable) insert(h, word uint64, now uint16) flowEntry {
	set := &t.sets[h%flowSets]
	at, oldest := 0, -1
	for i := range set {
		w := set[i].Load()
		if w == 0 {
			at = i
			break
		}
		if age := int(ageOf(uint16(w), now)); age > oldest {
			at, oldest = i, age
		}
	}
	set[at].Store(word)
	return flowEntry{&set[at], word}
}

// sweep takes out the entries that no flow can still use. Entries say nothing
// of their protocol, so all are given the time of TCP.
func (t *flowTable) sweep(now uint16, all bool) {
	for s := range t.sets {
		for i := range t.sets[s] {
			e := &t.sets[s][i]
			if w := e.Load(); w != 0 && (all || ageOf(uint16(w), now) > flowIdleTCP) {
				e.CompareAndSwap(w, 0)
			}
		}
	}
}
