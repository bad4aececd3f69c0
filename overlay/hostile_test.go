package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/overlay/firewall/firewalltest"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A trusted peer that floods us with control items holds a sixteenth of the
// loop's channel and no more; what others have to say finds room.
func TestHostileItemFlood(t *testing.T) {
	a, b, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	c := newRig(3, &sinkDevice{})
	cb, _ := join(c, b)
	c.use(cb, natt.Path{Remote: addr6}, natt.Path{}, 1200)
	const flood = 10_000
	plain := bytes.Repeat(appendItem(nil, itemPing, make([]byte, pingBody)), 100)
	for range flood / 100 {
		b.receive(addr4, a.seal(t, 2, plain, false))
	}
	of := func(p *peer) (n int) {
		for range len(b.events) {
			e := <-b.events
			if e.kind == evItem && e.entry.peer == p {
				n++
			}
			b.events <- e
		}
		return n
	}
	if n := of(b.peer(1)); n != maxItems || b.dropped(dropInLoop) != flood-maxItems {
		t.Errorf("%d items wait, want %d; drops %v", n, maxItems, b.drops.counts())
	}
	b.receive(addr6, c.seal(t, 2, plain[:20*13], false))
	b.want(b.know(4))
	if n := of(b.peer(3)); n != 20*13/(itemHeader+pingBody) || !b.peer(4).wanted.Load() {
		t.Errorf("%d items of another peer; drops %v", n, b.drops.counts())
	}
	// What the loop has taken makes room.
	for len(b.events) > 0 {
		e := <-b.events
		e.take()
	}
	if n := b.peer(1).items.Load(); n != 0 {
		t.Errorf("%d items are still counted", n)
	}
	b.receive(addr4, a.seal(t, 2, plain, false))
	if n := of(b.peer(1)); n != maxItems {
		t.Errorf("%d items wait after the flood", n)
	}
}

// The loop itself gives the room back, and answers all along.
func TestHostileItemFloodServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Full)
		defer w.close()
		alice.pathTo("bob", "direct")
		carol := w.agent("carol", natlab.Linux)
		w.befriend(carol, bob, "7", "7")
		carol.pathTo("bob", "direct")
		key := bob.cfg.Identity.Key.Public()
		for range 50 {
			alice.call(func(now instant) {
				k := alice.loop.links[key]
				tx := k.peer.tx.Load()
				plain := bytes.Repeat(appendItem(nil, itemKeepalive, nil), 400)
				frame, err := tx.session.Seal(nil, plain, false)
				if err != nil {
					t.Error(err)
					return
				}
				alice.loop.datagramVia(tx.path.Socket, tx.path.Remote, frame)
			})
			if _, err := carol.Ping(w.ctx(5*time.Second), "bob", 0); err != nil {
				t.Fatalf("carol is not served: %v", err)
			}
		}
		if _, err := alice.Ping(w.ctx(5*time.Second), "bob", 0); err != nil {
			t.Errorf("alice after her flood: %v", err)
		}
		synctest.Wait()
		for id, p := range bob.plane.snapshot.Load().peers {
			if n := p.items.Load(); n != 0 {
				t.Errorf("%d items of peer %d are still counted", n, id)
			}
		}
		if bob.plane.drops.n[dropInLoop].Load() == 0 {
			t.Error("the flood never met the limit")
		}
	})
}

// A frameReader is the receiver as the protocol page says it, slow and written
// apart from it: a list instead of reused buffers, one packet at a time instead of
// superpackets. It decides on inner packets with the firewall's reference.
type frameReader struct {
	*firewalltest.Reference
	halves []refHalf
	passed [][]byte
	drops  map[dropReason]int
	items  int
}

// refTick is the unit of the firewall's clock.
const refTick = 2 * time.Second

type refHalf struct {
	id     int
	second bool
	at     time.Duration
	data   []byte
}

func (r *frameReader) frame(b []byte, partial bool, now time.Duration) {
	for len(b) > 0 {
		n := 3
		switch kind := b[0] >> 4; {
		case kind == 0:
			if len(bytes.Trim(b, "\x00")) > 0 {
				r.drops[dropInItem]++
			}
			return
		case kind == 6 && len(b) >= 40:
			n = 40 + int(binary.BigEndian.Uint16(b[4:]))
		case kind != 6 && len(b) >= 3:
			n = 3 + int(binary.BigEndian.Uint16(b[1:]))
		default:
			n = len(b) + 1
		}
		if n > len(b) {
			r.drops[dropInItem]++
			return
		}
		switch {
		case b[0]>>4 == 6:
			r.packet(b[:n], partial, now)
		case b[0] == 0x15:
			r.half(b[3:n], now)
		default:
			r.items++
		}
		b = b[n:]
	}
}

func (r *frameReader) packet(p []byte, partial bool, now time.Duration) {
	if partial && p[6] != 6 && p[6] != 17 {
		r.drops[dropInPartial]++
		return
	}
	if v := dropIn[r.Admit(p, int64(now/refTick))]; v != carried {
		r.drops[v]++
		return
	}
	r.passed = append(r.passed, bytes.Clone(p))
	if partial {
		refComplete(r.passed[len(r.passed)-1])
	}
}

// refComplete writes the transport checksum of RFC 8200 8.1, octet by octet.
func refComplete(p []byte) {
	field := map[byte]int{6: 56, 17: 46}[p[6]]
	p[field], p[field+1] = 0, 0
	sum := len(p) - 40 + int(p[6])
	for i, b := range p[8:] {
		sum += int(b) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum = 0xffff - sum; sum == 0 && p[6] == 17 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[field:], uint16(sum))
}

// finished is what a host makes of a packet: segments with whole checksums.
func finished(t *testing.T, p tun.Packet) [][]byte {
	if p.SegmentSize > 0 || !p.Partial {
		return tuntest.Normalize(p)
	}
	if err := tun.CompleteChecksum(p.Data); err != nil {
		t.Fatalf("the device was given %x with a partial checksum: %v", p.Data, err)
	}
	return [][]byte{p.Data}
}

func (r *frameReader) half(b []byte, now time.Duration) {
	if len(b) < 4 || b[2] > 1 || len(b) > 2048 {
		r.drops[dropInFrag]++
		return
	}
	h := refHalf{id: int(binary.BigEndian.Uint16(b)), second: b[2] == 1, at: now, data: bytes.Clone(b[3:])}
	before := len(r.halves)
	r.halves = slices.DeleteFunc(r.halves, func(o refHalf) bool {
		return now-o.at > time.Second || o.id == h.id && o.second == h.second
	})
	r.drops[dropInFrag] += before - len(r.halves)
	other := slices.IndexFunc(r.halves, func(o refHalf) bool { return o.id == h.id })
	if other < 0 {
		if len(r.halves) == 64 {
			r.halves = r.halves[1:]
			r.drops[dropInFrag]++
		}
		r.halves = append(r.halves, h)
		return
	}
	p := slices.Concat(h.data, r.halves[other].data)
	if h.second {
		p = slices.Concat(r.halves[other].data, h.data)
	}
	r.halves = slices.Delete(r.halves, other, other+1)
	if len(p) < 40 || p[0]>>4 != 6 || len(p) != 40+int(binary.BigEndian.Uint16(p[4:])) {
		r.drops[dropInFrag]++
		return
	}
	r.packet(p, false, now)
}

// frame draws a frame that is nearly right: packets, runs that make superpackets,
// control items, halves, padding, and what lies about its length.
func frame(g firewalltest.Generator, from, to uint32) []byte {
	var b []byte
	for range 1 + g.IntN(6) {
		switch g.IntN(12) {
		case 0: // a run, as the sender cuts one
			s := segment(from, 80, to, 40000, tuntest.ACK, 64)
			for i := range 2 + g.IntN(8) {
				s.Seq = uint32(64 * i)
				if g.IntN(8) == 0 {
					s.Flags = uint8(g.Pick(tuntest.ACK|tuntest.PSH, tuntest.SYN, tuntest.ACK|tuntest.FIN))
				}
				b = append(b, s.Complete()...)
			}
		case 1:
			b = appendItem(b, itemKind(g.Pick(0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x18, 0x70, 0xf0)), make([]byte, g.IntN(30)))
		case 2, 3: // halves, of few numbers, so that they meet
			p := g.Packet(from, to)
			cut := g.IntN(len(p) + 1)
			id := uint16(g.IntN(12))
			b = appendFrag(b, id, false, p[:cut])
			if g.IntN(3) > 0 {
				b = appendFrag(b, id, true, p[cut:])
			}
		case 4:
			b = appendFrag(b, uint16(g.IntN(1000)), g.IntN(2) == 0, g.Packet(from, to))
			b[len(b)-1] ^= byte(g.Pick(0, 1))
		default:
			b = append(b, g.Packet(from, to)...)
		}
	}
	switch g.IntN(8) {
	case 0:
		b = b[:g.IntN(len(b)+1)]
	case 1:
		b[g.IntN(len(b))] ^= 1 << g.IntN(8)
	case 2:
		b = append(b, byte(g.Pick(0x60, 0x10, 0x15, 0)), byte(g.IntN(2)), byte(g.IntN(256)))
	case 3:
		b = append(b, make([]byte, g.IntN(40))...)
	}
	return b
}

// What comes out of the TUN after frames of a hostile peer is what the slow reader
// lets pass, byte for byte, and the drops are counted under the same reasons:
// PARTIAL where it is a lie, runs that become superpackets, halves that do not
// fit, items that overlap or run over the end. 10^6 frames with PILOT_HOSTILE=1.
func TestHostileFrameReference(t *testing.T) {
	frames := 5_000
	if os.Getenv("PILOT_HOSTILE") != "" {
		frames = 1_000_000
	}
	for _, offload := range []tun.Offload{{}, allOffloads} {
		t.Run(fmt.Sprintf("%+v", offload), func(t *testing.T) {
			t.Parallel()
			hostileFrames(t, frames/2, offload)
		})
	}
}

func hostileFrames(t *testing.T, frames int, offload tun.Offload) {
	a := newRig(them, &sinkDevice{})
	b := newRig(us, tuntest.New(tuntest.Options{Offload: offload, Depth: 1 << 12}))
	ab, ba := join(a, b)
	a.use(ab, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	gen := firewalltest.Generator{Rand: rand.New(rand.NewPCG(9, uint64(frames)))}
	peer := ba.peer
	peer.policy.Store(&firewall.Policy{})
	r := &frameReader{Reference: firewalltest.NewReference(b.firewall, b.own.As16(), &peer.Peer), drops: map[dropReason]int{}}
	var h firewall.Header
	passed, merged, batch := 0, 0, make([]natt.Message, 0, 8)
	for done := 0; done < frames; done += len(batch) {
		switch gen.IntN(20) {
		case 0:
			b.clock.boot += time.Duration(gen.IntN(int(4 * time.Second)))
			a.clock.boot = b.clock.boot
		case 1:
			r.Version++
			scopes := []string{"none", "7,80", "all", "7,80,40000/tcp"}
			r.In, r.Out = scope(t, scopes[gen.IntN(4)]), scope(t, scopes[gen.IntN(4)])
			peer.policy.Store(&firewall.Policy{Version: uint64(r.Version), In: r.In, Out: r.Out})
		case 2: // we open flows
			p := gen.Packet(us, them)
			if got, want := b.firewall.Sent(p, &peer.Peer, peer.policy.Load(), &h, b.clock.boot), r.Sent(p, int64(b.clock.boot/refTick)); got != want {
				t.Fatalf("out: %v, reference says %v\n%x", got, want, p)
			}
		}
		batch, r.passed, r.items = batch[:0], nil, 0
		for range 1 + gen.IntN(8) {
			plain, partial := frame(gen, them, us), gen.IntN(3) == 0
			if len(plain) > crypto.MaxFrame-crypto.Overhead {
				plain = plain[:crypto.MaxFrame-crypto.Overhead]
			}
			m := a.seal(t, us, plain, partial)
			m.N, m.Addr = len(m.Buf), addr4
			batch = append(batch, m)
			r.frame(plain, partial, b.clock.boot)
		}
		b.in.batch(batch)
		items := 0
		for len(b.events) > 0 {
			e := <-b.events
			e.take()
			if e.kind == evItem {
				items++
			}
		}
		if over := r.items - maxItems; over > 0 {
			r.drops[dropInLoop] += over
			r.items = maxItems
		}
		if items != r.items {
			t.Fatalf("after %d frames: %d control items, reference says %d", done, items, r.items)
		}
		var got [][]byte
		for d := b.device.(*tuntest.Channel); d.Waiting() > 0; {
			p, err := d.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if p.SegmentSize > 0 {
				merged++
			}
			got = append(got, finished(t, p)...)
		}
		slices.SortFunc(got, bytes.Compare)
		slices.SortFunc(r.passed, bytes.Compare)
		if !slices.EqualFunc(got, r.passed, bytes.Equal) {
			for i := range min(len(got), len(r.passed)) {
				if !bytes.Equal(got[i], r.passed[i]) {
					t.Fatalf("after %d frames: %x, reference says %x", done, got[i], r.passed[i])
				}
			}
			t.Fatalf("after %d frames: %d packets pass, reference says %d", done, len(got), len(r.passed))
		}
		passed += len(got)
		for reason := range dropReasons {
			if got := b.dropped(reason); got != uint64(r.drops[reason]) {
				t.Fatalf("after %d frames: %d drops as %s, reference says %d", done, got, name(reason), r.drops[reason])
			}
		}
	}
	if passed < frames/10 || offload.TSO && merged < frames/200 {
		t.Errorf("%d packets passed, %d superpackets", passed, merged)
	}
	for _, reason := range []dropReason{dropInItem, dropInPartial, dropInSource, dropInDestination, dropInHeader, dropInFragment, dropInICMP, dropInScope, dropInFrag} {
		if r.drops[reason] < frames/100 {
			t.Errorf("only %d packets came to %s", r.drops[reason], name(reason))
		}
	}
	t.Logf("%d packets passed, %d superpackets; %v", passed, merged, b.drops.counts())
}
