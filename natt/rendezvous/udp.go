package rendezvous

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// A socket is one UDP socket of the server, or a carrier: one TLS connection that
// carries datagrams. Each has one reader.
type socket struct {
	conn    natt.PacketConn
	index   int // of a UDP socket
	port    uint16
	carrier *relay.Carrier // nil for UDP
}

// readBatch bounds the memory of a reader: each message has a 64 KiB buffer.
const readBatch = 16

// A reader handles what comes in on one socket, in one goroutine.
type reader struct {
	s    *Server
	sock *socket
	in   []natt.Message
	out  [][]natt.Message // what this batch forwards, by socket
	one  [1]natt.Message
	now  int64 // of this batch
	mac  *relay.Checker
}

func newReader(s *Server, sock *socket) *reader {
	r := &reader{s: s, sock: sock, out: make([][]natt.Message, len(s.sockets)), mac: relay.NewChecker(s.public)}
	size := natt.MaxRun
	if sock.carrier != nil {
		size = carrierBuffer
	}
	r.in = make([]natt.Message, min(readBatch, sock.conn.BatchSize()))
	for i := range r.in {
		r.in[i].Buf = make([]byte, size)
	}
	return r
}

// run reads until the socket is closed.
func (r *reader) run() error {
	for {
		switch _, err := r.batch(); {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("rendezvous: receive on %s: %w", r.sock.conn.LocalAddr(), err)
		}
	}
}

// batch waits for datagrams, handles those that came together, and returns how
// many bytes they were.
func (r *reader) batch() (bytes int, err error) {
	n, err := r.sock.conn.ReadBatch(r.in)
	if err != nil {
		return 0, err
	}
	r.now = r.s.cfg.Now().UnixNano()
	for i := range r.in[:n] {
		bytes += r.in[i].N
		r.message(&r.in[i])
	}
	r.flush()
	return bytes, nil
}

func (r *reader) flush() {
	for i, out := range r.out {
		if len(out) == 0 {
			continue
		}
		if _, err := r.s.sockets[i].conn.WriteBatch(out); err != nil {
			r.s.count.sendErrors.Add(1)
		}
		clear(out)
		r.out[i] = out[:0]
	}
}

// message takes a run apart: RELAY frames of one channel that follow each other
// stay a run, everything else goes datagram by datagram.
func (r *reader) message(m *natt.Message) {
	b, size := m.Buf[:m.N], m.Segment
	if size == 0 {
		size = m.N
	}
	for len(b) > 0 {
		d := b[:min(size, len(b))]
		if number, inner, ok := relay.ParseFrame(d); ok {
			count, length := sameChannel(b, size)
			r.forward(m, b[:length], size, count, number, inner[0])
			b = b[length:]
			continue
		}
		r.datagram(m, d)
		b = b[len(d):]
	}
}

// sameChannel returns how many frames at the front of b have the header of the
// first, and their length together.
func sameChannel(b []byte, size int) (count, length int) {
	header := [relay.FrameOverhead + 1]byte(b)
	for length < len(b) {
		d := b[length:min(length+size, len(b))]
		if len(d) < len(header) || [relay.FrameOverhead]byte(d) != [relay.FrameOverhead]byte(header[:]) ||
			(d[relay.FrameOverhead] == 0) != (header[relay.FrameOverhead] == 0) {
			break
		}
		count++
		length += len(d)
	}
	return count, length
}

// datagram handles everything but RELAY frames.
func (r *reader) datagram(m *natt.Message, d []byte) {
	switch d[0] {
	case 0, 1:
		r.stun(m, d)
	case relay.TypeHello, relay.TypeVisit:
		r.request(m, d)
	case relay.TypeRecord:
		r.record(m, d)
	default:
		r.s.count.malformed.Add(1)
	}
}

func (r *reader) from(m *natt.Message) binding {
	return binding{addr: m.Addr, local: m.Local, sock: r.sock}
}

// reply queues an answer to the sender of m. b must not be changed until flush.
func (r *reader) reply(m *natt.Message, b []byte) {
	r.send(r.sock, natt.Message{Buf: b, Addr: m.Addr, Local: m.Local})
}

func (r *reader) send(sock *socket, m natt.Message) {
	if sock.carrier != nil { // has a queue of its own
		r.one[0] = m
		if _, err := sock.conn.WriteBatch(r.one[:]); err != nil {
			r.s.count.sendErrors.Add(1)
		}
		return
	}
	r.out[sock.index] = append(r.out[sock.index], m)
}

// hint tells the sender of m that we do not know its number, if d was no shorter.
func (r *reader) hint(m *natt.Message, length int, kind relay.HintKind, number uint64) {
	if length < relay.HintSize || !r.s.hints.allow(r.now, m.Addr.Addr()) {
		r.s.count.unknown.Add(1)
		return
	}
	r.s.count.hints.Add(1)
	r.reply(m, relay.AppendHint(make([]byte, 0, relay.HintSize), kind, number))
}

// request does the cheap checks of a HELLO or VISIT, in the order of their cost,
// and hands it to the workers.
func (r *reader) request(m *natt.Message, d []byte) {
	s := r.s
	if !r.mac.Check(d) {
		s.count.malformed.Add(1)
		return
	}
	if s.loaded() && !s.cookies.Check(s.cfg.Now(), d, m.Addr) {
		s.count.cookies.Add(1)
		r.reply(m, s.cookies.Append(make([]byte, 0, relay.CookieSize), s.cfg.Now(), d, m.Addr))
		return
	}
	if !s.handshakes.allow(r.now, m.Addr.Addr()) {
		s.count.limited.Add(1)
		return
	}
	select {
	case s.work <- job{msg: append([]byte(nil), d...), from: r.from(m)}:
	default:
		s.count.limited.Add(1)
	}
}

// record handles a RECORD: authenticate, then everything else.
func (r *reader) record(m *natt.Message, d []byte) {
	number, sealed, ok := relay.ParseRecord(d)
	if !ok {
		r.s.count.malformed.Add(1)
		return
	}
	sess := r.s.table.session(number)
	if sess == nil {
		r.hint(m, len(d), relay.HintSession, number)
		return
	}
	rec, err := relay.OpenRecord(sess.tr, sealed)
	if err != nil || rec.Kind != relay.Ping && rec.Kind != relay.Bye && rec.Kind != relay.Reveal {
		r.s.count.malformed.Add(1)
		return
	}
	from := r.from(m)
	first, moved := sess.heard(rec, binary.BigEndian.Uint64(sealed), from, r.now)
	if rec.Kind == relay.Bye {
		r.s.table.remove(sess)
		return
	}
	if first {
		r.s.confirm(sess)
	}
	if (first || moved) && r.sock.carrier == nil {
		r.s.bindings.add(sess.number, from)
	}
	sess.mu.Lock()
	superseded := sess.superseded
	sess.mu.Unlock()
	if superseded {
		sess.notify(relay.NoticeSuperseded)
		r.s.sendNotices(sess)
		return
	}
	if rec.Kind == relay.Reveal {
		r.reveal(m, sess, rec)
		return
	}
	pong := relay.Record{Kind: relay.Pong, Echo: rec.Echo, Time: r.s.cfg.Now(), Observed: m.Addr}
	if sess.mail.Load() {
		pong.Flags |= relay.FlagMail
	}
	if b, err := relay.AppendRecord(make([]byte, 0, relay.RecordSize), number, sess.tr, pong); err == nil {
		r.reply(m, b)
	}
}

// counters are what the server counts. Nothing in them is about one agent.
type counters struct {
	malformed, unknown, limited, cookies, hints, sendErrors       atomic.Uint64
	hellos, visits, refused                                       atomic.Uint64
	frames, bytes, dropped, offline                               atomic.Uint64
	stun, claims, withdrawals, mail, mailFetched, cards, carriers atomic.Uint64
}
