package userspace

import (
	"fmt"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/pilotnet/pilot/tun"
)

const (
	batchSize = 256
	maxPacket = 65535

	// arenaSize is the memory of one Read; a packet is read only while the
	// largest still fits.
	arenaSize = 2 * (tun.Headroom + maxPacket + tun.Tailroom)

	// What waits for the reader of the device: enough to keep it at work, little
	// enough that a short packet does not wait long behind bulk data.
	maxQueued      = 1024
	maxQueuedBytes = 512 << 10

	// patience is how long a sender of bulk data waits for room. It is short,
	// since acknowledgements of other connections may wait with it.
	patience = 20 * time.Millisecond

	// superpacketSize is the payload that TCP hands over at once, such that the
	// segments still fit one UDP send when each has become a frame.
	superpacketSize = 60000
)

var offload = tun.Offload{VNetHdr: true, TSO: true}

// A link is the wire between netstack and the device: a stack.LinkEndpoint.
type link struct {
	mtu uint32

	mu     sync.Mutex
	queue  []*stack.PacketBuffer // from head
	head   int
	bytes  int
	room   chan struct{} // closed when there is room again; nil: nobody waits
	closed bool
	ready  chan struct{} // has a value when there may be something to read
	done   chan struct{} // closed by shut

	dispatcherMu sync.RWMutex
	dispatcher   stack.NetworkDispatcher
}

func newLink(mtu int) *link {
	return &link{mtu: uint32(mtu), ready: make(chan struct{}, 1), done: make(chan struct{})}
}

// WritePackets implements stack.LinkWriter: packets of the stack on their way to
// the device.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range list.AsSlice() {
		if err := l.put(p); err != nil {
			return i, err
		}
	}
	return list.Len(), nil
}

func (l *link) put(p *stack.PacketBuffer) tcpip.Error {
	n := p.Size()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full(n) && p.GSOOptions.Type != stack.GSONone && p.Data().Size() > 0 {
		l.await(n)
	}
	switch {
	case l.closed:
		return &tcpip.ErrClosedForSend{}
	case l.full(n):
		return &tcpip.ErrNoBufferSpace{}
	}
	l.queue = append(l.queue, p.IncRef())
	l.bytes += n
	select {
	case l.ready <- struct{}{}:
	default:
	}
	return nil
}

// full says whether n bytes have to wait. An empty queue takes anything.
func (l *link) full(n int) bool {
	waiting := len(l.queue) - l.head
	return waiting >= maxQueued || waiting > 0 && l.bytes+n > maxQueuedBytes
}

// await lets go of mu until there is room, or patience ends.
func (l *link) await(n int) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for l.full(n) && !l.closed {
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
			l.mu.Lock()
		case <-late.C:
			l.mu.Lock()
			return
		}
	}
}

// take returns the next packet, and nil if there is none or it is more than most
// bytes.
func (l *link) take(most int) *stack.PacketBuffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == len(l.queue) {
		return nil
	}
	p := l.queue[l.head]
	n := p.Size()
	if n > most {
		return nil
	}
	l.queue[l.head] = nil
	l.head++
	l.bytes -= n
	if l.head == len(l.queue) {
		l.queue, l.head = l.queue[:0], 0
	} else if l.head >= maxQueued {
		l.queue = l.queue[:copy(l.queue, l.queue[l.head:])]
		l.head = 0
	}
	if l.room != nil && !l.full(n) {
		close(l.room)
		l.room = nil
	}
	return p
}

func (l *link) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// shut ends the link in both directions.
func (l *link) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.done)
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	for _, p := range l.queue[l.head:] {
		p.DecRef()
	}
	l.queue, l.head, l.bytes = nil, 0, 0
}

// deliver gives a packet to the stack, as received. The bytes are copied.
func (l *link) deliver(p tun.Packet) error {
	if len(p.Data) < header.IPv6MinimumSize || p.Data[0]>>4 != 6 {
		return tun.ErrMalformed
	}
	if !p.Partial && !checksumHolds(p.Data) {
		return fmt.Errorf("userspace: packet of %d octets: wrong checksum", len(p.Data))
	}
	l.dispatcherMu.RLock()
	d := l.dispatcher
	l.dispatcherMu.RUnlock()
	if d == nil {
		return os.ErrClosed
	}
	v := buffer.NewViewSize(p.Len())
	b := v.AsSlice()
	b = b[copy(b, p.Data):]
	for _, t := range p.Tail {
		b = b[copy(b, t):]
	}
	received := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	d.DeliverNetworkPacket(ipv6.ProtocolNumber, received)
	received.DecRef()
	return nil
}

// checksumHolds verifies the checksum of a TCP or UDP packet, which the stack is
// told not to look at since most are partial. It lets pass what is neither, and
// what comes in fragments or with extension headers; as for those, and for the
// packet as a whole, the tunnel has authenticated every byte.
func checksumHolds(p []byte) bool {
	h := header.IPv6(p)
	body := p[header.IPv6MinimumSize:]
	if int(h.PayloadLength()) != len(body) {
		return true // malformed; the stack says so
	}
	switch h.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
	default:
		return true
	}
	sum := header.PseudoHeaderChecksum(h.TransportProtocol(), h.SourceAddress(), h.DestinationAddress(), h.PayloadLength())
	return checksum.Checksum(body, sum) == 0xffff
}

// The rest of stack.LinkEndpoint and stack.GSOEndpoint.

func (l *link) MTU() uint32 { return l.mtu }

func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.dispatcherMu.Lock()
	defer l.dispatcherMu.Unlock()
	l.dispatcher = d
}

func (l *link) IsAttached() bool {
	l.dispatcherMu.RLock()
	defer l.dispatcherMu.RUnlock()
	return l.dispatcher != nil
}

func (*link) GSOMaxSize() uint32                      { return superpacketSize }
func (*link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) Wait()                                   {}
func (*link) Close()                                  {}
func (*link) SetOnCloseAction(func())                 {}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
	_ tun.Device         = (*Stack)(nil)
)
