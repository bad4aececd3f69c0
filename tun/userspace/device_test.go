package userspace

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

var (
	own    = netip.MustParseAddr("fd50:494c:4f54::cccc:1")
	prefix = netip.MustParsePrefix("fd50:494c:4f54::/48")
)

func newStack(t testing.TB) *Stack {
	t.Helper()
	d, err := Open(tun.Config{Address: netip.PrefixFrom(own, 128), Route: prefix, MTU: 1408})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d.(*Stack)
}

// A host is netstack as the other side of the device: it sends by the link, as
// its TCP does, and sees what reaches its interface.
//
// netstack is told neither the segment size of a superpacket nor which checksums
// are partial, for it needs neither: the host has seen the one on the way in, and
// tells the other from the checksum.
type host struct {
	*Stack
	stack.NetworkDispatcher // of the stack

	got   chan []byte
	mu    sync.Mutex
	sizes map[string]int // of superpackets, by their beginning
}

func (h *host) Write(list []tun.Packet) error {
	h.mu.Lock()
	for _, p := range list {
		if p.SegmentSize > 0 && len(p.Data) > 6 && p.Data[6] == tuntest.TCP {
			h.sizes[beginning(p.Data)] = p.SegmentSize
		}
	}
	h.mu.Unlock()
	return h.Stack.Write(list)
}

// beginning tells the superpackets of the suite apart: it has addresses, ports and
// numbers.
func beginning(b []byte) string { return string(b[:min(len(b), 60)]) }

func (h *host) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	v := p.ToView()
	h.got <- append([]byte(nil), v.AsSlice()...)
	v.Release()
	h.NetworkDispatcher.DeliverNetworkPacket(protocol, p)
}

func (h *host) Inject(p tun.Packet) error {
	out := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p.Data)})
	defer out.DecRef()
	if p.Partial && p.Data[6] == tuntest.TCP {
		out.GSOOptions = stack.GSO{
			Type: stack.GSOTCPv6, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset, MSS: uint16(p.SegmentSize), L3HdrLen: header.IPv6MinimumSize,
		}
		if p.SegmentSize == 0 {
			out.GSOOptions.MSS = maxPacket
		}
	} else if p.Partial { // netstack sums up datagrams itself
		whole := append([]byte(nil), p.Data...)
		if err := tun.CompleteChecksum(whole); err != nil {
			return err
		}
		return h.Inject(tun.Packet{Data: whole})
	}
	var list stack.PacketBufferList
	list.PushBack(out)
	if n, err := h.link.WritePackets(list); err != nil || n != 1 {
		return fmt.Errorf("%d packets, %v", n, err)
	}
	return nil
}

func (h *host) Receive(ctx context.Context) (tun.Packet, error) {
	select {
	case b := <-h.got:
		h.mu.Lock()
		defer h.mu.Unlock()
		p := tun.Packet{Data: b, SegmentSize: h.sizes[beginning(b)]}
		seed := append([]byte(nil), b...)
		p.Partial = tun.SetPartial(seed) == nil && bytes.Equal(seed, b)
		return p, nil
	case <-h.link.done:
		return tun.Packet{}, os.ErrClosed
	case <-ctx.Done():
		return tun.Packet{}, ctx.Err()
	}
}

func TestConformance(t *testing.T) {
	tuntest.Conformance(t, func(t *testing.T) (tun.Device, tuntest.Host) {
		s := newStack(t)
		h := &host{Stack: s, got: make(chan []byte, 1024), sizes: map[string]int{}}
		h.NetworkDispatcher = s.link.dispatcher
		s.link.Attach(h)
		return h, h
	})
}

// datagram is a whole UDP packet from port 9 to port 7.
func datagram(from, to netip.Addr, text string) []byte {
	return tuntest.Segment{
		Src: netip.AddrPortFrom(from, 9), Dst: netip.AddrPortFrom(to, 7), Proto: tuntest.UDP, HopLimit: 64, Payload: []byte(text),
	}.Complete()
}
