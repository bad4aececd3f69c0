package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/tun"
)

// outbound carries packets from the TUN to the network: one goroutine, from
// read to send, without a hand-over. Nothing in it allocates, locks or logs for
// a packet that has a session.
type outbound struct {
	*plane
	send   *sender
	cut    tun.Cutter
	header firewall.Header
	source [16]byte // that the kernel may send from: our own
	reply  []byte
}

func newOutbound(p *plane) *outbound {
	return &outbound{plane: p, send: newSender(p), source: p.own.As16(), reply: make([]byte, 0, 1500)}
}

// run returns nil when the device was closed.
func (o *outbound) run() error {
	packets := make([]tun.Packet, o.device.BatchSize())
	for {
		n, err := o.device.Read(packets)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("overlay: read %s: %w", o.device.Name(), err)
		}
		now := o.clock.Boot()
		snap := o.snapshot.Load()
		for i := range packets[:n] {
			o.packet(snap, &packets[i], now)
		}
		o.send.flush()
	}
}

// overlayNetwork is the start of every address of network 0.
func overlayNetwork() (b [12]byte) {
	a := ipam.Addr{}.ULA().As16()
	copy(b[:], a[:12])
	return b
}

func (o *outbound) packet(snap *snapshot, pkt *tun.Packet, now time.Duration) {
	p := pkt.Data
	if len(p) < ipv6HeaderSize || p[0]>>4 != 6 ||
		pkt.SegmentSize == 0 && len(p) != ipv6HeaderSize+int(binary.BigEndian.Uint16(p[4:])) {
		o.drops.add(dropOutVersion)
		return
	}
	if p[24] == 0xff || p[24] == 0xfe {
		o.drops.add(dropOutMulticast)
		return
	}
	if [16]byte(p[8:24]) != o.source {
		o.drops.add(dropOutSource)
		return
	}
	if [12]byte(p[24:36]) != o.prefix {
		o.refuse(p, dropOutPrefix, icmpNoRoute, now)
		return
	}
	to := snap.peerOf(p[24:40])
	if to == nil {
		if !o.answer(pkt) {
			o.refuse(p, dropOutNoPeer, icmpNoRoute, now)
		}
		return
	}
	if r := dropOut[o.firewall.Sent(p, &to.Peer, to.policy.Load(), &o.header, now)]; r != carried {
		o.refuse(p, r, icmpProhibited, now)
		return
	}
	o.wake(to)
	tx := to.tx.Load()
	if tx == nil {
		o.queue(to, pkt)
		return
	}
	to.txBytes.Add(uint64(len(p)))
	to.txPackets.Add(1)
	if err := o.cut.Reset(*pkt, tx.room); err != nil {
		o.drops.add(dropOutVersion)
		return
	}
	if o.cut.Segments() == 1 {
		o.send.packet(to, tx, o.cut.Next(), o.cut.Partial())
		return
	}
	for s := o.cut.Next(); s != nil; s = o.cut.Next() {
		o.send.segmented(to, tx, s)
	}
}

// answer takes questions about names, which go to an address that no peer can
// have.
func (o *outbound) answer(pkt *tun.Packet) bool {
	if o.resolver == nil || pkt.SegmentSize != 0 {
		return false
	}
	b := o.resolver.Reply(o.reply[:0], pkt.Data)
	if len(b) == 0 {
		return false
	}
	// As any packet: the program asks again.
	_ = o.device.Write([]tun.Packet{{Data: b}})
	return true
}

// queue keeps a packet until there is a session: cut at the device's MTU, with
// whole checksums.
func (o *outbound) queue(to *peer, pkt *tun.Packet) {
	if err := o.cut.Reset(*pkt, o.device.MTU()); err != nil {
		o.drops.add(dropOutVersion)
		return
	}
	for s := o.cut.Next(); s != nil; s = o.cut.Next() {
		if o.cut.Partial() && tun.CompleteChecksum(s) != nil {
			o.drops.add(dropOutVersion)
			continue
		}
		for range to.stage.push(s) {
			o.drops.add(dropOutQueue)
		}
	}
	o.want(to)
}

// Destination unreachable (RFC 4443 3.1) and its codes.
const (
	protoICMPv6     = 58
	icmpUnreachable = 1

	icmpNoRoute    = 0
	icmpProhibited = 1
)

// refuse drops a packet of our own host and tells it so, within limits, so that
// a program fails at once instead of waiting.
func (o *outbound) refuse(p []byte, r dropReason, code byte, now time.Duration) {
	o.drops.add(r)
	if p[6] == protoICMPv6 && len(p) > ipv6HeaderSize && p[ipv6HeaderSize] < 128 || !o.icmp.allow(now) {
		return // no error about an error
	}
	quote := p[:min(len(p), 1280-ipv6HeaderSize-8)]
	b := o.reply[:ipv6HeaderSize+8]
	clear(b)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(quote)))
	b[6], b[7] = protoICMPv6, 64
	copy(b[8:24], p[24:40]) // in the name of the destination
	copy(b[24:40], p[8:24])
	b[ipv6HeaderSize], b[ipv6HeaderSize+1] = icmpUnreachable, code
	b = append(b, quote...)
	binary.BigEndian.PutUint16(b[ipv6HeaderSize+2:], icmpChecksum(b))
	// The error is lost like any packet if the device does not take it.
	_ = o.device.Write([]tun.Packet{{Data: b}})
}

// icmpChecksum is the checksum of the ICMPv6 message in p, whose field is zero.
func icmpChecksum(p []byte) uint16 {
	acc := uint32(len(p)-ipv6HeaderSize) + protoICMPv6
	b := p[8:]
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return ^uint16(acc)
}
