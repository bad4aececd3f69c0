package overlay

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// pathPackets are the shapes that the packet path is measured with.
func pathPackets(from, to uint32) map[string]tun.Packet {
	return map[string]tun.Packet{
		"64 B":        {Data: datagram(from, 1, to, 7, 16).Complete()},
		"1280 B":      {Data: datagram(from, 1, to, 7, 1232).Complete()},
		"superpacket": segment(from, 1, to, 80, tuntest.ACK, 60000).Partial(1360),
		"halves":      {Data: datagram(from, 1, to, 7, 1360).Complete()},
	}
}

// again sends a packet once more. What is sent may be spoilt, so it is a copy.
func (r *rig) again(p tun.Packet) {
	r.spare = append(r.spare[:0], p.Data...)
	p.Data = r.spare
	r.out.packet(r.snapshot.Load(), &p, r.clock.boot)
	r.out.send.flush()
}

// Reading, checking, cutting and sealing allocate nothing for a packet.
func TestAllocOutbound(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, p := range pathPackets(1, 2) {
		for path, also := range map[string]natt.Path{"one path": {}, "two paths": {Remote: addr6, Channel: 1}} {
			a, _, _ := one(t, natt.Path{Remote: addr4}, also, 1372)
			a.socket.discard = true
			if n := testing.AllocsPerRun(200, func() { a.again(p) }); n != 0 {
				t.Errorf("%s, %s: %v allocations", name, path, n)
			}
			if a.socket.calls == 0 || a.allDropped() != 0 {
				t.Errorf("%s: %d writes, drops %v", name, a.socket.calls, a.drops.counts())
			}
		}
	}
}

// Every reason to refuse a packet of the host, each counted once; those that a
// program can learn from draw an ICMPv6 error.
func TestOutboundRefuses(t *testing.T) {
	cut := datagram(1, 9, 2, 7, 30).Complete()
	outside := datagram(1, 9, 2, 7, 30)
	outside.Dst = addr6
	lan := datagram(1, 9, 2, 7, 3).Complete()
	lan[34] = 1 // in the prefix of the plan, but not an address of it
	group := datagram(1, 9, 2, 7, 30).Complete()
	copy(group[24:], []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16})
	for name, c := range map[string]struct {
		p     tun.Packet
		want  dropReason
		error int // code of destination unreachable; -1: none
	}{
		"IPv4":                  {tun.Packet{Data: append([]byte{0x45}, make([]byte, 60)...)}, dropOutVersion, -1},
		"nothing":               {tun.Packet{}, dropOutVersion, -1},
		"cut":                   {tun.Packet{Data: cut[:60]}, dropOutVersion, -1},
		"overlong":              {tun.Packet{Data: append(bytes.Clone(cut), 0)}, dropOutVersion, -1},
		"foreign source":        {tun.Packet{Data: datagram(3, 9, 2, 7, 3).Complete()}, dropOutSource, -1},
		"multicast":             {tun.Packet{Data: group}, dropOutMulticast, -1},
		"outside the prefix":    {tun.Packet{Data: outside.Complete()}, dropOutPrefix, icmpNoRoute},
		"not of the plan":       {tun.Packet{Data: lan}, dropOutPrefix, icmpNoRoute},
		"nobody":                {tun.Packet{Data: datagram(1, 9, 3, 7, 3).Complete()}, dropOutNoPeer, icmpNoRoute},
		"ourselves":             {tun.Packet{Data: datagram(1, 9, 1, 7, 3).Complete()}, dropOutNoPeer, icmpNoRoute},
		"not granted":           {tun.Packet{Data: datagram(1, 9, 2, 8, 3).Complete()}, dropOutScope, icmpProhibited},
		"not granted, long":     {tun.Packet{Data: datagram(1, 9, 2, 8, 1300).Complete()}, dropOutScope, icmpProhibited},
		"superpacket not meant": {segment(1, 9, 2, 8, tuntest.SYN, 30000).Partial(1000), dropOutScope, icmpProhibited},
		"error to nobody":       {tun.Packet{Data: icmp(1, 3, 2, 0, cut)}, dropOutNoPeer, -1},
		"extension header":      {tun.Packet{Data: raw(1, 2, 60, make([]byte, 16))}, dropOutVersion, icmpProhibited},
	} {
		a, _, _ := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
		a.plane.device = tuntest.New(tuntest.Options{})
		a.peer(2).policy.Store(&firewall.Policy{Version: 1, Out: scope(t, "7")})
		a.send(c.p)
		if a.dropped(c.want) != 1 || a.allDropped() != 1 || len(a.socket.take()) != 0 {
			t.Errorf("%s: drops %v", name, a.drops.counts())
		}
		got := a.drained(t)
		if c.error < 0 {
			if len(got) != 0 {
				t.Errorf("%s: answered with %x", name, got)
			}
			continue
		}
		if len(got) != 1 {
			t.Errorf("%s: %d errors", name, len(got))
			continue
		}
		e := got[0]
		quoted := c.p.Data[:min(len(c.p.Data), 1232)]
		want := icmp(1, 2, icmpUnreachable, uint8(c.error), quoted)
		copy(want[8:24], c.p.Data[24:40])
		copy(want[24:40], c.p.Data[8:24])
		want[42], want[43] = e[42], e[43]
		if !bytes.Equal(e, want) || len(e) > 1280 || !validICMP(e) {
			t.Errorf("%s: answered with\n%x, want\n%x", name, e, want)
		}
	}
}

// validICMP sums the whole message and its pseudo-header byte by byte.
func validICMP(p []byte) bool {
	total := len(p) - 40 + 58
	for i, b := range p[8:] {
		if i%2 == 0 {
			total += int(b) << 8
		} else {
			total += int(b)
		}
	}
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	return total == 0xffff
}

// Packets without a session wait, whole and complete, and the loop is asked
// once.
func TestOutboundQueues(t *testing.T) {
	a, b, tx := one(t, natt.Path{Remote: addr4}, natt.Path{}, 1200)
	a.peer(2).tx.Store(nil)
	s := segment(1, 1, 2, 80, tuntest.ACK, 5000)
	a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 30).Complete()}, s.Partial(1000), datagram(1, 8, 2, 7, 30).Partial(0))
	want := append([][]byte{datagram(1, 9, 2, 7, 30).Complete()}, tuntest.Normalize(s.Partial(1000))...)
	want = append(want, datagram(1, 8, 2, 7, 30).Complete())
	staged := a.peer(2).stage.take()
	sameFlows(t, staged, want)
	kinds := ""
	for len(a.events) > 0 {
		kinds += fmt.Sprint((<-a.events).kind, " ")
	}
	if kinds != fmt.Sprint(evAwake, " ", evWant, " ") {
		t.Errorf("events %s", kinds)
	}
	for range stagePackets + 5 {
		a.send(tun.Packet{Data: datagram(1, 9, 2, 7, 30).Complete()})
	}
	if a.dropped(dropOutQueue) != 5 || len(a.events) != 0 {
		t.Errorf("%d events, drops %v", len(a.events), a.drops.counts())
	}
	for _, p := range a.peer(2).stage.take() {
		a.out.send.packet(a.peer(2), tx, p, false)
	}
	a.out.send.flush()
	b.receive(addr4, a.socket.take()...)
	if n := len(b.drained(t)); n != stagePackets {
		t.Errorf("%d came out of the stage", n)
	}
}

func BenchmarkOutbound(b *testing.B) {
	for name, p := range pathPackets(1, 2) {
		b.Run(name, func(b *testing.B) { benchOutbound(b, 1, p) })
	}
	b.Run("64 B, 10,000 peers", func(b *testing.B) { benchOutbound(b, 10_000, pathPackets(1, 2)["64 B"]) })
}

// benchOutbound measures packets that come 64 at a time.
func benchOutbound(b *testing.B, peers int, p tun.Packet) {
	a, _, _ := one(b, natt.Path{Remote: addr4}, natt.Path{}, 1500)
	for i := range peers - 1 {
		a.know(uint32(100 + i))
	}
	a.socket.discard = true
	snap := a.snapshot.Load()
	data := bytes.Clone(p.Data)
	b.SetBytes(int64(p.Len()))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		copy(data, p.Data[:60]) // what cutting spoils
		q := tun.Packet{Data: data, SegmentSize: p.SegmentSize, Partial: p.Partial}
		a.out.packet(snap, &q, a.clock.boot)
		if i%64 == 63 {
			a.out.send.flush()
		}
	}
	if n := a.drops.counts(); len(n) != 0 {
		b.Fatal(n)
	}
}

// A look-up by address, and the firewall alone.
func BenchmarkLookup(b *testing.B) {
	for _, peers := range []int{1, 10_000} {
		r := newRig(1, &sinkDevice{})
		for i := range peers {
			r.know(uint32(1000 + i*7919))
		}
		snap := r.snapshot.Load()
		dst := ulaPort(1000, 0).Addr().As16()
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			for b.Loop() {
				if snap.peerOf(dst[:]) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}
