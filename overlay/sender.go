package overlay

import (
	"errors"
	"syscall"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/tun"
)

// A sender turns inner packets into runs of sealed frames: equal-sized frames
// to one path laid end to end, the last of them possibly shorter, so that one
// system call with UDP_SEGMENT sends them. Small packets that already wait
// share a frame; none is delayed for it, since flush is called when the source
// runs dry. Frames leave in the order in which packets came. Not safe for
// concurrent use: every goroutine that sends has its own.
type sender struct {
	plane *plane
	arena []byte // runs, one after the other
	msgs  []natt.Message
	ways  []natt.Path // for each message: the path it takes
	owner []*peer     // and the peer it goes to

	to      *peer     // of the open run
	tx      *transmit // of the open run
	start   int       // where the open run begins in arena
	segment int       // size of its frames
	frames  int

	bundle  int // bytes of plaintext in the open bundle, which lies where the next frame's plaintext goes; 0: none
	partial bool
}

const (
	arenaSize   = 256 << 10
	runBytes    = 65000 // what one sendmsg carries, with room for the UDP and IP headers
	runFrames   = 64    // UDP_MAX_SEGMENTS of older kernels
	maxMessages = 64
	// frameSpace is the most that one frame may need in the arena.
	frameSpace = natt.MaxBudget + relayHeader + crypto.Overhead + 16
)

func newSender(p *plane) *sender {
	return &sender{
		plane: p,
		arena: make([]byte, 0, arenaSize),
		msgs:  make([]natt.Message, 0, maxMessages),
		ways:  make([]natt.Path, 0, maxMessages),
		owner: make([]*peer, 0, maxMessages),
	}
}

// packet sends one inner packet, whole or as two halves.
func (s *sender) packet(to *peer, tx *transmit, p []byte, partial bool) {
	if len(p) > tx.room {
		s.halves(to, tx, p, partial)
		return
	}
	if s.bundle > 0 && (s.to != to || s.tx != tx || s.partial != partial || s.bundle+len(p) > tx.room) {
		s.closeBundle()
	}
	if s.bundle == 0 && len(p)%16 == 0 && 2*len(p) > tx.room {
		s.reserve()
		s.frame(to, tx, p, partial)
		return
	}
	s.addToBundle(to, tx, p, partial)
	if s.bundle+ipv6HeaderSize > tx.room {
		s.closeBundle()
	}
}

// segmented sends one segment of a superpacket, straight from where it was
// read into the arena. It is not padded: its neighbours have its length. Where
// a frame has room for several they share it.
func (s *sender) segmented(to *peer, tx *transmit, p []byte) {
	if len(p) > tx.room {
		s.halves(to, tx, p, true)
		return
	}
	if tx.budget > plainBudget && 2*len(p) <= tx.room {
		s.packet(to, tx, p, true)
		return
	}
	s.closeBundle()
	s.reserve()
	s.frame(to, tx, p, true)
}

// item sends a control item in a frame of its own, padded with zeros to fill
// an outer packet of size bytes (0: not padded).
func (s *sender) item(to *peer, tx *transmit, item []byte, size int) {
	s.closeBundle()
	n := (len(item) + 15) &^ 15
	if size > 0 {
		n = max(n, room(tx.path, size))
	}
	s.reserve()
	at := s.plaintextAt(tx.path)
	b := s.arena[:cap(s.arena)][at : at+n]
	clear(b[copy(b, item):])
	s.frame(to, tx, b, false)
}

func (s *sender) addToBundle(to *peer, tx *transmit, p []byte, partial bool) {
	if s.bundle == 0 {
		s.reserve()
		if s.to != to || s.tx != tx {
			s.closeRun()
			s.to, s.tx, s.start = to, tx, len(s.arena)
		}
		s.partial = partial
	}
	at := s.plaintextAt(tx.path) + s.bundle
	copy(s.arena[:cap(s.arena)][at:], p)
	s.bundle += len(p)
}

// plaintextAt is where in the arena the plaintext of the next frame on a path
// lies.
func (s *sender) plaintextAt(p natt.Path) int {
	at := len(s.arena) + crypto.HeaderSize
	if p.Relayed() {
		at += relayHeader
	}
	return at
}

func (s *sender) closeBundle() {
	n := s.bundle
	if n == 0 {
		return
	}
	s.bundle = 0
	at := s.plaintextAt(s.tx.path)
	b := s.arena[:cap(s.arena)][at : at+(n+15)&^15]
	clear(b[n:])
	s.frame(s.to, s.tx, b, s.partial)
}

// halves sends a packet that does not fit the path as two FRAG items.
func (s *sender) halves(to *peer, tx *transmit, p []byte, partial bool) {
	s.closeBundle()
	cut := (len(p)/2 + 15) &^ 15
	if fragHeader+cut > tx.room || fragHeader+len(p)-cut > tx.room {
		s.plane.drops.add(dropOutTooBig)
		return
	}
	if partial && tun.CompleteChecksum(p) != nil {
		s.plane.drops.add(dropOutVersion)
		return
	}
	id := uint16(to.fragID.Add(1))
	for i, h := range [2][]byte{p[:cut], p[cut:]} {
		s.reserve()
		at := s.plaintextAt(tx.path)
		b := appendFrag(s.arena[:cap(s.arena)][at:at:cap(s.arena)], id, i == 1, h)
		n := len(b)
		b = b[:(n+15)&^15]
		clear(b[n:])
		s.frame(to, tx, b, false)
	}
}

// frame seals one plaintext into the arena, where reserve has made room. The
// plaintext may lie at plaintextAt.
func (s *sender) frame(to *peer, tx *transmit, plaintext []byte, partial bool) {
	size := len(plaintext) + crypto.Overhead
	if tx.path.Relayed() {
		size += relayHeader
	}
	if s.tx != tx || s.to != to || size > s.segment || s.frames == runFrames || len(s.arena)-s.start+size > runBytes {
		s.closeRun()
	}
	if s.frames == 0 {
		s.to, s.tx, s.start, s.segment, s.frames = to, tx, len(s.arena), size, 0
	}
	at := len(s.arena)
	out := s.arena
	if tx.path.Relayed() {
		out = out[:at+relayHeader]
		relay.PutFrameHeader(out[at:], tx.path.Channel)
	}
	out, err := tx.session.Seal(out, plaintext, partial)
	if err != nil {
		s.plane.drops.add(dropOutSession)
		return
	}
	s.arena = out
	s.frames++
	if tx.double() {
		s.closeRun()
		s.again(to, tx, out[at:])
	} else if size < s.segment {
		s.closeRun()
	}
}

// again sends a frame that is already sealed on the second path too. The replay
// window of the receiver lets only one through.
func (s *sender) again(to *peer, tx *transmit, sealed []byte) {
	if tx.path.Relayed() {
		sealed = sealed[relayHeader:]
	}
	at := len(s.arena)
	if tx.also.Relayed() {
		s.arena = s.arena[:at+relayHeader]
		relay.PutFrameHeader(s.arena[at:], tx.also.Channel)
	}
	s.arena = append(s.arena, sealed...)
	s.message(s.arena[at:], 0, to, tx.also)
	s.start = len(s.arena)
}

func (s *sender) message(b []byte, segment int, to *peer, way natt.Path) {
	s.msgs = append(s.msgs, natt.Message{Buf: b, Segment: segment, Addr: way.Remote})
	s.ways = append(s.ways, way)
	s.owner = append(s.owner, to)
}

// closeRun makes a message of the open run.
func (s *sender) closeRun() {
	if s.frames == 0 {
		return
	}
	segment := 0
	if s.frames > 1 {
		segment = s.segment
	}
	s.message(s.arena[s.start:], segment, s.to, s.tx.path)
	s.frames, s.segment, s.start = 0, 0, len(s.arena)
}

// reserve makes sure that a frame and its double fit the arena.
func (s *sender) reserve() {
	if cap(s.arena)-len(s.arena) < 2*frameSpace || len(s.msgs) > maxMessages-4 {
		s.write()
	}
}

// flush sends what has been collected.
func (s *sender) flush() {
	s.closeBundle()
	s.write()
}

func (s *sender) write() {
	s.closeRun()
	for from := 0; from < len(s.msgs); {
		to := from + 1
		for to < len(s.msgs) && s.ways[to].Socket == s.ways[from].Socket {
			to++
		}
		if conn := s.plane.socket(s.ways[from].Socket); conn != nil {
			_, err := conn.WriteBatch(s.msgs[from:to])
			s.failed(err, from)
		} else {
			s.plane.drops.add(dropOutSend)
		}
		from = to
	}
	clear(s.owner)
	s.arena, s.msgs, s.ways, s.owner = s.arena[:0], s.msgs[:0], s.ways[:0], s.owner[:0]
	s.to, s.tx, s.start = nil, nil, 0
}

// failed counts what the socket refused and tells the loop of a path that
// became narrower.
func (s *sender) failed(err error, from int) {
	if err == nil {
		return // before w, which lives on the heap
	}
	var w *natt.WriteError
	if !errors.As(err, &w) {
		return
	}
	for _, i := range w.Failed {
		i += from
		s.plane.drops.add(dropOutSend)
		m := s.msgs[i]
		if errors.Is(w.Err, syscall.EMSGSIZE) && s.owner[i] != nil {
			size := m.Segment
			if size == 0 {
				size = len(m.Buf)
			}
			s.plane.tell(event{kind: evTooBig, peer: s.owner[i], path: s.ways[i], body: make([]byte, size)})
		}
	}
}
