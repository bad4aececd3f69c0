package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

var stranger = netip.MustParseAddrPort("203.0.113.200:9")

// probe draws what a stranger may send: noise, and the shapes of our messages
// and of others' with wrong contents.
func probe(r *rand.Rand, i int) []byte {
	shaped := func(n int, head ...byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		copy(b, head)
		return b
	}
	switch i % 12 {
	case 0:
		return shaped(1 + r.IntN(1400))
	case 1:
		return shaped(crypto.InitSize, byte(crypto.TypeInit), 1, 0, 0)
	case 2:
		return shaped(crypto.RespSize, byte(crypto.TypeResp), 1, 0, 0)
	case 3:
		return shaped(32+r.IntN(1300), byte(crypto.TypeData), 0, 0, 0)
	case 4:
		return append(shaped(relay.FrameOverhead, relay.TypeFrame, 0, 0, 0), probe(r, 1+r.IntN(3))...)
	case 5:
		return shaped(1+r.IntN(200), byte(relay.TypeHello+r.IntN(8)))
	case 6:
		return shaped(20+4*r.IntN(10), 0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42) // STUN
	case 7:
		return shaped(148, 1, 0, 0, 0) // WireGuard
	case 8:
		return shaped(200, 22, 0xfe, 0xfd) // DTLS
	case 9:
		return shaped(1200, 0xc3, 0, 0, 0, 1) // QUIC
	case 10:
		return shaped(1+r.IntN(40), byte(r.IntN(16)))
	}
	return nil // an empty datagram
}

// Strangers' datagrams draw nothing, tell the loop nothing and are counted, each
// once.
func TestStrangers(t *testing.T) {
	a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	k, _ := testKnock(t, 1)
	b.tags.advance(1000)
	b.tags.add(k)
	b.snapshot.Load().servers = map[netip.AddrPort]bool{addr6: true}
	b.waiting.Store(uint32(7), struct{}{})
	r := rand.New(rand.NewPCG(5, 5))
	const probes = 20_000
	var m []natt.Message
	for i := range probes {
		p := probe(r, i)
		m = append(m, natt.Message{Buf: p, N: len(p), Addr: stranger})
	}
	b.in.batch(m)
	if n := b.allDropped(); n != probes {
		t.Errorf("%d of %d counted: %v", n, probes, b.drops.counts())
	}
	if len(b.events) != 0 || len(b.outside) != 0 || b.socket.calls != 0 || len(b.drained(t)) != 0 {
		t.Errorf("%d events, %d from outside, %d writes", len(b.events), len(b.outside), b.socket.calls)
	}
	for reason, n := range b.drops.counts() {
		switch reason {
		case "in_unknown", "in_short", "in_init_tag", "in_resp_index", "in_index":
			if n < probes/200 {
				t.Errorf("only %d were %s", n, reason)
			}
		default:
			t.Errorf("%d were %s", n, reason)
		}
	}
	// Positive control: the peer gets through from the same address.
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 100).Complete()})
	b.receive(stranger, a.socket.take()...)
	if len(b.drained(t)) != 1 {
		t.Errorf("the peer was not heard: %v", b.drops.counts())
	}
}

// What a stranger flips in a recorded frame, and what he plays again, changes
// nothing.
func TestTamperedFrames(t *testing.T) {
	a, b, tx := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 30).Complete()})
	frame := a.socket.take()[0]
	for i := range frame.Buf {
		for bit := range 8 {
			f := natt.Message{Buf: bytes.Clone(frame.Buf)}
			f.Buf[i] ^= 1 << bit
			b.receive(stranger, f)
		}
	}
	for n := range frame.Buf {
		b.receive(stranger, natt.Message{Buf: frame.Buf[:n]})
	}
	b.receive(stranger, natt.Message{Buf: append(bytes.Clone(frame.Buf), 0)})
	e := b.snapshot.Load().sessions.get(tx.session.Remote())
	if len(b.drained(t)) != 0 || len(b.events) != 0 || e.confirmed.Load() || e.peer.lastSeen.Load() != 0 || e.peer.rxPackets.Load() != 0 {
		t.Fatalf("state changed: %d events", len(b.events))
	}
	b.receive(addr4, frame)
	for range 10 {
		b.receive(stranger, frame)
	}
	if len(b.drained(t)) != 1 || b.dropped(dropInReplay) != 10 {
		t.Errorf("replayed: %v", b.drops.counts())
	}
	// Confirm, awake and roam came once, all from the true address.
	for len(b.events) > 0 {
		if e := <-b.events; e.path.Remote.IsValid() && e.path.Remote != addr4 {
			t.Errorf("event %d with the replayer's address", e.kind)
		}
	}
}

// seal makes a frame of any plaintext, as a hostile peer would.
func (r *rig) seal(t testing.TB, node uint32, plain []byte, partial bool) natt.Message {
	t.Helper()
	b, err := r.peer(node).tx.Load().session.Seal(nil, plain, partial)
	if err != nil {
		t.Fatal(err)
	}
	return natt.Message{Buf: b}
}

// A trusted but hostile peer: what it puts into frames is refused, counted once
// each, and does not keep the good packets before it from passing.
func TestHostileFrames(t *testing.T) {
	good := datagram(1, 9, 2, 7, 30).Complete()
	shortened := bytes.Clone(good)
	binary.BigEndian.PutUint16(shortened[44:], 9) // as its UDP header says
	tcp := segment(1, 9, 2, 80, tuntest.ACK, 30).Complete()
	join := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	for name, c := range map[string]struct {
		plain   []byte
		partial bool
		want    dropReason
		passes  int
	}{
		"good":                         {join(good, tcp), false, carried, 2},
		"good, partial":                {join(good, tcp), true, carried, 2},
		"padding":                      {join(good, make([]byte, 100)), false, carried, 1},
		"only padding":                 {make([]byte, 100), false, carried, 0},
		"nothing":                      {nil, false, carried, 0},
		"padding with something in it": {join(good, []byte{0, 0, 1}), false, dropInItem, 1},
		"item over the end":            {join(good, []byte{0x10, 0, 9, 1}), false, dropInItem, 1},
		"packet over the end":          {join(good, good[:50]), false, dropInItem, 1},
		"partial ping":                 {join(good, icmp(1, 2, 128, 0, nil)), true, dropInPartial, 1},
		"partial fragment":             {fragment(1, 2, trust.ProtoUDP, 1, 0, true, good[40:72]), true, dropInPartial, 0},
		"partial extension header":     {raw(1, 2, 0, make([]byte, 16)), true, dropInPartial, 0},
		"partial UDP, cut":             {raw(1, 2, trust.ProtoUDP, make([]byte, 7)), true, dropInHeader, 0},
		"partial UDP, wrong length":    {shortened, true, dropInHeader, 0},
		"foreign source":               {join(datagram(3, 9, 2, 7, 3).Complete(), good), false, dropInSource, 1},
		"into the LAN":                 {datagram(1, 9, 3, 7, 3).Complete(), false, dropInDestination, 0},
		"FRAG too short":               {appendItem(nil, itemFrag, []byte{0, 1, 0}), false, dropInFrag, 0},
		"FRAG in FRAG":                 {join(appendFrag(nil, 1, false, appendFrag(nil, 2, false, good)), appendFrag(nil, 1, true, good)), false, dropInFrag, 0},
		"FRAG of two packets":          {join(appendFrag(nil, 1, false, good), appendFrag(nil, 1, true, good)), false, dropInFrag, 0},
		"FRAG of a packet and zeros":   {join(appendFrag(nil, 1, false, good), appendFrag(nil, 1, true, make([]byte, 9))), false, dropInFrag, 0},
		"FRAG of a cut packet":         {join(appendFrag(nil, 1, false, good[:40]), appendFrag(nil, 1, true, good[40:50])), false, dropInFrag, 0},
		"FRAG of a foreign source":     {join(appendFrag(nil, 1, false, datagram(3, 9, 2, 7, 3).Complete()[:20]), appendFrag(nil, 1, true, datagram(3, 9, 2, 7, 3).Complete()[20:])), false, dropInSource, 0},
		"FRAG in a partial frame":      {join(appendFrag(nil, 1, false, good[:20]), appendFrag(nil, 1, true, good[20:])), true, carried, 1},
	} {
		a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
		b.receive(addr4, a.seal(t, 2, c.plain, c.partial))
		if n := len(b.drained(t)); n != c.passes {
			t.Errorf("%s: %d packets pass, want %d", name, n, c.passes)
		}
		if n := b.allDropped(); c.want == carried && n != 0 || c.want != carried && (n != 1 || b.dropped(c.want) != 1) {
			t.Errorf("%s: drops %v", name, b.drops.counts())
		}
	}
}

// A session's end and a revocation take effect with the next frame.
func TestInboundAfterTheEnd(t *testing.T) {
	a, b, tx := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	frame := func() natt.Message { return a.seal(t, 2, datagram(1, 9, 2, 7, 30).Complete(), false) }
	b.peer(1).policy.Store(nil)
	b.receive(addr4, frame())
	if b.dropped(dropInScope) != 1 || len(b.drained(t)) != 0 {
		t.Errorf("revoked: %v", b.drops.counts())
	}
	e := b.snapshot.Load().sessions.get(tx.session.Remote())
	e.Wipe()
	b.receive(addr4, frame())
	b.snapshot.Load().sessions.remove(e)
	b.receive(addr4, frame())
	if b.dropped(dropInAuth) != 1 || b.dropped(dropInIndex) != 1 || len(b.drained(t)) != 0 {
		t.Errorf("ended: %v", b.drops.counts())
	}
}

// When the loop is busy, what it was not told is told again with the next
// packet, and a flood from outside does not take the room of the peers.
func TestEventsAreRepeated(t *testing.T) {
	a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	k, theirs := testKnock(t, 1)
	b.tags.advance(crypto.Epoch(b.clock.Now()))
	b.tags.add(k)
	for i := range cap(b.outside) + 10 {
		init, err := theirs.Initiate(b.clock.Now(), uint32(i+1), crypto.InitPayload{})
		if err != nil {
			t.Fatal(err)
		}
		b.receive(stranger, natt.Message{Buf: init.Message()})
	}
	if len(b.events) != 0 || len(b.outside) != cap(b.outside) || b.dropped(dropInLoop) != 10 {
		t.Errorf("%d events, %d outside, drops %v", len(b.events), len(b.outside), b.drops.counts())
	}
	for len(b.events) < cap(b.events) {
		b.events <- event{}
	}
	frame := func() natt.Message { return a.seal(t, 2, datagram(1, 9, 2, 7, 30).Complete(), false) }
	b.receive(addr4, frame())
	if len(b.drained(t)) != 1 {
		t.Error("a busy loop stopped data")
	}
	for len(b.events) > 0 {
		<-b.events
	}
	b.receive(addr4, frame())
	b.receive(addr4, frame())
	got := map[eventKind]int{}
	for len(b.events) > 0 {
		got[(<-b.events).kind]++
	}
	if fmt.Sprint(got) != fmt.Sprint(map[eventKind]int{evConfirm: 1, evAwake: 1, evRoam: 1}) {
		t.Errorf("events by kind: %v", got)
	}
}

// In the lab: a stranger beside the node's own router sends 10,000 datagrams
// and an INIT that he recorded. He gets no byte; all arrive; the peer is served.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Full)
		defer w.close()
		alice.pathTo("bob", "direct")
		conn := bob.router.Host("mallory").Listen(4444)
		defer conn.Close()
		target := netip.AddrPortFrom(bob.host.Addr(), bob.plane.conn.LocalAddr().Port())
		answers := make(chan int, 1)
		go func() {
			m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
			n := 0
			for {
				if _, err := conn.ReadBatch(m); err != nil {
					answers <- n
					return
				}
				n++
			}
		}()
		total := func() (n uint64) {
			for i := range bob.plane.drops.n {
				n += bob.plane.drops.n[i].Load()
			}
			return n
		}
		before := total()
		r := rand.New(rand.NewPCG(9, 9))
		sent := uint64(0)
		for i := range 10_000 {
			p := probe(r, i)
			if len(p) == 0 {
				continue
			}
			sent++
			if _, err := conn.WriteBatch([]natt.Message{{Buf: p, Addr: target}}); err != nil {
				t.Fatal(err)
			}
			if i%50 == 0 {
				pass(time.Millisecond)
			}
		}
		pass(time.Second)
		if n := total() - before; n != sent {
			t.Errorf("%d of %d probes counted: %v", n, sent, bob.Status().Drops)
		}
		alice.send(bob, 5, 64)
		if n, err := bob.receive(time.Second); err != nil || n != 5 {
			t.Errorf("positive control: %d, %v", n, err)
		}
		conn.Close()
		if n := <-answers; n != 0 {
			t.Errorf("the stranger got %d datagrams", n)
		}
	})
}

// A loopSocket hands what is written straight to a receiver.
type loopSocket struct {
	keptSocket
	to *inbound
}

func (s *loopSocket) WriteBatch(m []natt.Message) (int, error) {
	for i := range m {
		m[i].N, m[i].Addr = len(m[i].Buf), addr4
	}
	s.to.batch(m)
	return len(m), nil
}

// Opening, checking, joining and delivering allocate nothing for a packet.
func TestAllocInbound(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, p := range pathPackets(1, 2) {
		sink := &sinkDevice{offload: allOffloads}
		a, b := newRig(1, &sinkDevice{}), newRig(2, sink)
		a.plane.conn = &loopSocket{to: b.in}
		e, _ := join(a, b)
		for path, p2 := range map[string]natt.Path{"direct": {Remote: addr4}, "relay": {Remote: addr4, Channel: 5}} {
			a.use(e, p2, natt.Path{}, 1372)
			if n := testing.AllocsPerRun(200, func() { a.again(p) }); n != 0 {
				t.Errorf("%s, %s: %v allocations", name, path, n)
			}
		}
		if b.allDropped() != 0 || a.allDropped() != 0 || sink.packets == 0 {
			t.Errorf("%s: %d packets, drops %v, %v", name, sink.packets, a.drops.counts(), b.drops.counts())
		}
	}
}

// A tape is a number of frames from one peer that can be opened again and
// again: each round has a session whose window is new.
type tape struct {
	keys   crypto.Keys
	in     *inbound
	entry  *sessionEntry
	frames []natt.Message
	fresh  []natt.Message
}

func newTape(tb testing.TB, peers int, p tun.Packet, frames int) *tape {
	tb.Helper()
	a, b := newRig(1, &sinkDevice{}), newRig(2, &sinkDevice{offload: allOffloads})
	ab, ba := join(a, b)
	for i := range peers - 1 {
		b.know(uint32(100 + i))
	}
	t := &tape{in: b.in, entry: ba}
	binary.BigEndian.PutUint64(t.keys.Recv[:], 1<<32|2)
	binary.BigEndian.PutUint64(t.keys.Send[:], 2<<32|1)
	b.peer(1).tx.Store(&transmit{path: natt.Path{Remote: addr4}})
	a.use(ab, natt.Path{Remote: addr4}, natt.Path{}, 1500)
	for range frames {
		a.again(p)
	}
	t.fresh = a.socket.take()
	for _, m := range t.fresh {
		t.frames = append(t.frames, natt.Message{Buf: make([]byte, len(m.Buf)), N: len(m.Buf), Segment: m.Segment, Addr: addr4})
	}
	return t
}

func (t *tape) rewind() {
	for i := range t.fresh {
		copy(t.frames[i].Buf, t.fresh[i].Buf)
	}
	e := &sessionEntry{Session: crypto.NewSession(t.keys, t.entry.Local(), t.entry.Remote()), peer: t.entry.peer}
	e.confirmed.Store(true)
	t.in.snapshot.Load().sessions.put(e)
}

func BenchmarkInbound(b *testing.B) {
	for name, p := range pathPackets(1, 2) {
		b.Run(name, func(b *testing.B) { benchInbound(b, 1, p) })
	}
	b.Run("64 B, 10,000 peers", func(b *testing.B) { benchInbound(b, 10_000, pathPackets(1, 2)["64 B"]) })
}

func benchInbound(b *testing.B, peers int, p tun.Packet) {
	tape := newTape(b, peers, p, 1024)
	tape.rewind()
	b.SetBytes(int64(p.Len()))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i%1024 == 0 {
			b.StopTimer()
			tape.rewind()
			b.StartTimer()
		}
		per := len(tape.frames) / 1024
		at := i % 1024 * per
		tape.in.batch(tape.frames[at : at+per])
	}
	if n := tape.in.drops.counts(); len(n) != 0 {
		b.Fatal(n)
	}
}
