package overlay

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/natt/stun"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
)

// inbound carries datagrams from the socket to the TUN: one goroutine, from
// read to write, without a hand-over. What is not data goes to the control loop
// over a bounded channel, after the cheapest check that tells strangers apart.
type inbound struct {
	*plane
	conn   natt.PacketConn
	number uint16
	merge  *tun.Merger
	msgs   []natt.Message
	header firewall.Header
	joined []byte // packets that came in halves, until they are written
	now    time.Duration
	snap   *snapshot
	heard  bool // an authenticated frame came
}

const joinedSize = 64 << 10

// bufferStride is the distance of receive buffers. If it were a power of two,
// datagrams that come one by one would all lie in the same few sets of the caches
// and drive each other out before they are opened.
const bufferStride = natt.MaxRun + plainBudget + 36

func newInbound(p *plane, conn natt.PacketConn, number uint16) *inbound {
	in := &inbound{
		plane:  p,
		conn:   conn,
		number: number,
		merge:  tun.NewMerger(p.device.Offload()),
		msgs:   make([]natt.Message, conn.BatchSize()),
		joined: make([]byte, 0, joinedSize),
	}
	space := make([]byte, len(in.msgs)*bufferStride)
	for i := range in.msgs {
		in.msgs[i].Buf = space[i*bufferStride:][:natt.MaxRun:natt.MaxRun]
	}
	return in
}

// run returns nil when the socket was closed.
func (in *inbound) run() error {
	for {
		n, err := in.conn.ReadBatch(in.msgs)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("overlay: receive: %w", err)
		}
		in.batch(in.msgs[:n])
	}
}

func (in *inbound) batch(msgs []natt.Message) {
	in.now = in.clock.Boot()
	in.snap = in.snapshot.Load()
	for i := range msgs {
		m := &msgs[i]
		b, size := m.Buf[:m.N], m.Segment
		if len(b) == 0 {
			in.drops.add(dropInShort)
		}
		if size <= 0 {
			size = max(len(b), 1)
		}
		for len(b) > 0 {
			k := min(size, len(b))
			in.datagram(b[:k], natt.Path{Remote: m.Addr, Socket: in.number})
			b = b[k:]
		}
	}
	in.deliver()
}

// deliver writes what the batch made to the TUN.
func (in *inbound) deliver() {
	if in.merge.Len() > 0 {
		if in.device.Write(in.merge.Flush()) != nil {
			in.drops.add(dropInDevice)
		}
	}
	in.joined = in.joined[:0]
}

// datagram is the one table of first bytes.
func (in *inbound) datagram(b []byte, from natt.Path) {
	switch b[0] {
	case byte(crypto.TypeData):
		in.data(b, from)
	case byte(crypto.TypeInit):
		in.knock(b, from)
	case byte(crypto.TypeResp):
		in.answer(b, from)
	case relay.TypeFrame:
		channel, inner, ok := relay.ParseFrame(b)
		switch {
		case !ok || channel == 0 || from.Relayed():
			in.drops.add(dropInShort)
		case len(inner) > 0 && inner[0] != 0 && inner[0] != relay.TypeFrame:
			from.Channel = channel
			in.datagram(inner, from)
		default:
			in.server(b, from) // a keepalive that came back
		}
	case relay.TypeWelcome, relay.TypeOpened, relay.TypeRecord, relay.TypeCookie, relay.TypeHint:
		in.server(b, from)
	default:
		if stun.Is(b) {
			in.server(b, from)
			return
		}
		in.drops.add(dropInUnknown)
	}
}

// server passes a rendezvous server's message to the loop, if a server of ours
// is at this address at all.
func (in *inbound) server(b []byte, from natt.Path) {
	if from.Relayed() || !in.snap.servers[from.Remote] {
		in.drops.add(dropInUnknown)
		return
	}
	in.tell(event{kind: evServer, path: from, body: append([]byte(nil), b...)})
}

// knock looks an INIT up by its tag. A stranger costs this look-up and nothing
// more.
func (in *inbound) knock(b []byte, from natt.Path) {
	_, tag, ok := crypto.InitHeader(b)
	if !ok {
		in.drops.add(dropInShort)
		return
	}
	k := in.tags.find(tag)
	if len(k) == 0 {
		in.drops.add(dropInInitTag)
		return
	}
	in.tell(event{kind: evInit, path: from, knock: k, body: append([]byte(nil), b...)})
}

// answer passes a RESP on if it names an INIT that is under way.
func (in *inbound) answer(b []byte, from natt.Path) {
	_, index, ok := crypto.RespHeader(b)
	if !ok {
		in.drops.add(dropInShort)
		return
	}
	if _, waiting := in.waiting.Load(index); !waiting {
		in.drops.add(dropInRespIndex)
		return
	}
	in.tell(event{kind: evResp, path: from, body: append([]byte(nil), b...)})
}

func (in *inbound) data(b []byte, from natt.Path) {
	index, ok := crypto.DataIndex(b)
	if !ok {
		in.drops.add(dropInShort)
		return
	}
	e := in.snap.sessions.get(index)
	if e == nil {
		in.drops.add(dropInIndex)
		return
	}
	plain, partial, _, err := e.Open(b[crypto.HeaderSize:crypto.HeaderSize], b)
	if err != nil {
		if errors.Is(err, crypto.ErrReplay) {
			in.drops.add(dropInReplay)
		} else {
			in.drops.add(dropInAuth)
		}
		return
	}
	in.heard = true
	p := e.peer
	if !e.confirmed.Load() && e.confirmed.CompareAndSwap(false, true) &&
		!in.tell(event{kind: evConfirm, entry: e, path: from}) {
		e.confirmed.Store(false)
	}
	p.lastSeen.Store(int64(in.now))
	pol := p.policy.Load()
	if pol == nil {
		in.drops.add(dropInScope) // revoked while the frame was opened
		return
	}
	packets, ok := in.items(e, pol, plain, partial, from)
	if !ok {
		in.drops.add(dropInItem)
	}
	if packets == 0 {
		return
	}
	p.rxPackets.Add(uint64(packets))
	in.wake(p)
	if tx := p.tx.Load(); tx == nil || tx.path != from {
		if p.roamed.CompareAndSwap(false, true) && !in.tell(event{kind: evRoam, entry: e, path: from}) {
			p.roamed.Store(false)
		}
	}
}

// items walks a frame's plaintext and returns the number of packets in it.
func (in *inbound) items(e *sessionEntry, pol *firewall.Policy, b []byte, partial bool, from natt.Path) (packets int, ok bool) {
	for {
		kind, item, rest, err := nextItem(b)
		if err != nil {
			return packets, false
		}
		if item == nil {
			return packets, true
		}
		b = rest
		switch {
		case kind == 0:
			packets++
			in.packet(e.peer, pol, item, partial)
		case kind == itemFrag:
			packets++
			in.half(e, pol, item)
		default:
			in.tellItem(e, from, kind, item)
		}
	}
}

// half joins the two parts of a packet that did not fit the sender's path.
func (in *inbound) half(e *sessionEntry, pol *firewall.Policy, body []byte) {
	if cap(in.joined)-len(in.joined) < 2*maxHalf {
		in.deliver()
	}
	at := len(in.joined)
	whole, lost := e.frags.add(in.joined[at:at:cap(in.joined)], body, in.now)
	for range lost {
		in.drops.add(dropInFrag)
	}
	if whole == nil {
		return
	}
	in.joined = in.joined[:at+len(whole)]
	kind, p, rest, err := nextItem(whole)
	if err != nil || kind != 0 || p == nil || len(rest) != 0 {
		in.drops.add(dropInFrag)
		return
	}
	in.packet(e.peer, pol, p, false)
}

// packet decides on one inner packet and hands it to the merger.
func (in *inbound) packet(from *peer, pol *firewall.Policy, p []byte, partial bool) {
	if partial && p[6] != trust.ProtoTCP && p[6] != trust.ProtoUDP {
		in.drops.add(dropInPartial)
		return
	}
	if r := dropIn[in.firewall.Admit(p, &from.Peer, pol, &in.header, in.now)]; r != carried {
		in.drops.add(r)
		return
	}
	if in.merge.Add(p, partial) != nil {
		in.drops.add(dropInPartial)
		return
	}
	from.rxBytes.Add(uint64(len(p)))
}
