package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// MaxMTU is the best MTU for the link: nothing but memory is between the program
// and us, and a packet costs the same whatever its size.
const MaxMTU = 65520

const (
	nic        = 1
	queueLen   = 1024 // packets on their way to the program
	maxOpening = 512  // TCP connections that wait for the host
	maxFlows   = 1024 // of UDP

	dialTime  = 30 * time.Second
	flowIdle  = time.Minute
	queryTime = 20 * time.Second // more than programs wait for an answer
)

// A Config is the two ends of a Forwarder.
type Config struct {
	// Link carries one IP packet with each Read and Write, of at most MTU octets.
	Link io.ReadWriteCloser
	MTU  int
	// Dial opens a connection of the host; network is "tcp" or "udp". Nil: the host's
	// sockets.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// NameServer is an address whose port 53 is Names. Invalid: none.
	NameServer netip.Addr
	// Names answers one DNS query; network is how it came, "tcp" or "udp". An error
	// means no answer.
	Names func(ctx context.Context, network string, query []byte) ([]byte, error)
	// Logger hears of trouble; nil for nobody.
	Logger *slog.Logger
}

// A Forwarder carries what comes from its link to the host's network.
type Forwarder struct {
	c     Config
	ep    *channel.Endpoint
	stack *stack.Stack
	ctx   context.Context // of Run; set before a packet arrives
	flows atomic.Int32

	mu    sync.Mutex
	ended bool
	conns sync.WaitGroup // what may not outlive Run
}

// New makes a Forwarder, which takes over c.Link.
func New(c Config) (*Forwarder, error) {
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, to.String())
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{c: c, ep: channel.New(queueLen, uint32(c.MTU), "")}
	// The sender is a kernel on this machine: bytes do not change on the way.
	f.ep.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	f.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := f.configure(); err != nil {
		f.stack.Close()
		return nil, err
	}
	return f, nil
}

// configure makes the stack take every address for its own.
func (f *Forwarder) configure() error {
	sack := tcpip.TCPSACKEnabled(true)
	for what, err := range map[string]tcpip.Error{
		"SACK":        f.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		"interface":   f.stack.CreateNIC(nic, f.ep),
		"promiscuous": f.stack.SetPromiscuousMode(nic, true),
		"spoofing":    f.stack.SetSpoofing(nic, true),
	} {
		if err != nil {
			return fmt.Errorf("forward: %s: %v", what, err)
		}
	}
	f.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	f.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(f.stack, 0, maxOpening, f.openTCP).HandlePacket)
	f.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(f.stack, f.openUDP).HandlePacket)
	return nil
}

// Run carries traffic until ctx ends or the link fails, and returns when every
// connection has ended. An orderly end is nil.
func (f *Forwarder) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	f.ctx = ctx
	g.Go(func() error {
		<-ctx.Done()
		f.c.Link.Close()
		return nil
	})
	g.Go(func() error { return f.in(ctx) })
	g.Go(func() error { return f.out(ctx) })
	err := g.Wait()
	f.stack.Close()
	f.ep.Close()
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.conns.Wait()
	f.stack.Wait()
	return err
}

// begin says whether a connection may begin; it calls conns.Done at its end.
func (f *Forwarder) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	f.conns.Add(1)
	return true
}

// errLink ends the other direction when one has ended by itself.
var errLink = errors.New("forward: the link was closed")

// in reads packets of the link.
func (f *Forwarder) in(ctx context.Context) error {
	b := make([]byte, f.c.MTU)
	for {
		n, err := f.c.Link.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
			return errLink
		case err != nil:
			return fmt.Errorf("forward: read: %w", err)
		}
		proto, ok := carried(b[:n])
		if !ok {
			continue
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[:n])})
		f.ep.InjectInbound(proto, p)
		p.DecRef()
	}
}

// out writes packets to the link.
func (f *Forwarder) out(ctx context.Context) error {
	for {
		p := f.ep.ReadContext(ctx)
		if p == nil {
			return nil
		}
		v := p.ToView()
		p.DecRef()
		_, err := f.c.Link.Write(v.AsSlice())
		v.Release()
		if err != nil && ctx.Err() == nil {
			f.c.Logger.Debug("packet not written", "error", err)
		}
	}
}

// carried says whether the stack is to see a packet: TCP and UDP from one host to
// another. The rest it would answer itself, as if it were every host.
func carried(p []byte) (tcpip.NetworkProtocolNumber, bool) {
	const (
		tcpNumber, udpNumber     = 6, 17
		hopByHop, fragment, dest = 0, 44, 60
	)
	if len(p) < header.IPv4MinimumSize {
		return 0, false
	}
	var to netip.Addr
	var proto byte
	var number tcpip.NetworkProtocolNumber
	switch p[0] >> 4 {
	case 4:
		to, proto, number = netip.AddrFrom4([4]byte(p[16:20])), p[9], ipv4.ProtocolNumber
	case 6:
		if len(p) < header.IPv6MinimumSize {
			return 0, false
		}
		to, proto, number = netip.AddrFrom16([16]byte(p[24:40])), p[6], ipv6.ProtocolNumber
	default:
		return 0, false
	}
	switch {
	case to.IsMulticast(), to.IsUnspecified(), to.IsLoopback(), to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return 0, false
	case proto == tcpNumber, proto == udpNumber:
		return number, true
	}
	// What follows the extension headers is for the stack to find out; it has no
	// protocols but these two to hand it to.
	return number, number == ipv6.ProtocolNumber && (proto == hopByHop || proto == fragment || proto == dest)
}

// ends are the program's address and the one that it wants.
func ends(id stack.TransportEndpointID) (from, to netip.AddrPort) {
	address := func(a tcpip.Address) netip.Addr {
		ip, _ := netip.AddrFromSlice(a.AsSlice())
		return ip
	}
	return netip.AddrPortFrom(address(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
}

// named says whether to is the name server's.
func (f *Forwarder) named(to netip.AddrPort) bool {
	return f.c.Names != nil && to.Addr() == f.c.NameServer && to.Port() == 53
}
