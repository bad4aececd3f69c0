package userspace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/pilotnet/pilot/tun"
)

// Name is what every Stack is called where a device has a name.
const Name = "userspace"

// nic is the number of the one interface of a stack.
const nic tcpip.NICID = 1

// Buffers of a connection. They grow to the most only where the path needs it,
// and hold 200 ms of 160 Mbit/s.
const (
	leastBuffer = 4 << 10
	usualBuffer = 256 << 10
	mostBuffer  = 4 << 20
)

// A Stack is a TCP/IP stack with one address, and the device that it stands
// behind. All methods may be called from any goroutine, but Read from one at a
// time. What is open on the stack ends with Close.
type Stack struct {
	own   netip.Addr
	mtu   int
	stack *stack.Stack
	link  *link

	close sync.Once

	writeMu sync.Mutex
	flat    tun.Flattener
	emit    func(tun.Packet) error

	arena []byte // Read's
}

// Open makes a stack that has c.Address and reaches c.Route, with c.MTU; the rest
// of c is for devices of the kernel. It needs no right and nothing of the system.
// The Device is a *Stack.
func Open(c tun.Config) (tun.Device, error) {
	s, err := New(c.Address.Addr(), c.Route, c.MTU)
	if err != nil {
		return nil, err // not a *Stack that is nil
	}
	return s, nil
}

// New makes a stack with one address that reaches one prefix.
func New(own netip.Addr, route netip.Prefix, mtu int) (*Stack, error) {
	if !own.Is6() || own.Is4In6() || !route.Addr().Is6() || mtu < tun.MinMTU || mtu > tun.MaxMTU {
		return nil, fmt.Errorf("userspace: address %v, route %v, MTU %d: want IPv6 and %d to %d", own, route, mtu, tun.MinMTU, tun.MaxMTU)
	}
	s := &Stack{own: own, mtu: mtu, link: newLink(mtu), arena: make([]byte, arenaSize)}
	s.emit = s.link.deliver
	s.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv6.NewProtocolWithOptions(ipv6.Options{
			// There is one address, nobody else has it, and there are no routers.
			NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
		})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
		HandleLocal:        true,
	})
	if err := s.configure(route); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) configure(route netip.Prefix) error {
	if err := tuneTCP(s.stack); err != nil {
		return err
	}
	if err := s.stack.CreateNIC(nic, s.link); err != nil {
		return fmt.Errorf("userspace: make the interface: %v", err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(s.own.As16()).WithPrefix()}
	if err := s.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("userspace: set the address: %v", err)
	}
	to, err := tcpip.NewSubnet(tcpip.AddrFrom16(route.Masked().Addr().As16()), tcpip.MaskFromBytes(mask(route.Bits())))
	if err != nil {
		return fmt.Errorf("userspace: route %v: %w", route, err)
	}
	s.stack.AddRoute(tcpip.Route{Destination: to, NIC: nic})
	return nil
}

// tuneTCP makes TCP fit for networks with loss and delay.
func tuneTCP(s *stack.Stack) error {
	cubic, sack, moderate := tcpip.CongestionControlOption("cubic"), tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	// RACK of this version takes reordering for loss over and over (gVisor issue
	// 9778); without it losses are found by SACK, RFC 6675.
	recovery := tcpip.TCPRecovery(0)
	var failed error
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&cubic, &sack, &moderate, &recovery,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: mostBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: mostBuffer},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			failed = errors.Join(failed, fmt.Errorf("userspace: option %T: %v", o, err))
		}
	}
	return failed
}

func mask(bits int) []byte {
	m := make([]byte, 16)
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// Name implements tun.Device.
func (s *Stack) Name() string { return Name }

// MTU implements tun.Device.
func (s *Stack) MTU() int { return s.mtu }

// BatchSize implements tun.Device.
func (s *Stack) BatchSize() int { return batchSize }

// Offload implements tun.Device. The stack is the kernel here.
func (s *Stack) Offload() tun.Offload { return offload }

// Write implements tun.Device.
func (s *Stack) Write(p []tun.Packet) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.link.isClosed() {
		return os.ErrClosed
	}
	var first error
	for i := range p {
		if err := s.flat.Flatten(p[i], offload, s.emit); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Unsent says whether a connection was closed here whose end the other side has not
// acknowledged.
func (s *Stack) Unsent() bool {
	for _, e := range s.stack.CleanupEndpoints() {
		switch t, ok := e.(*tcp.Endpoint); {
		case !ok:
		case slices.Contains([]tcp.EndpointState{tcp.StateFinWait1, tcp.StateLastAck, tcp.StateClosing}, t.EndpointState()):
			return true
		}
	}
	return false
}

// Close implements tun.Device. Connections and listeners of the stack end, those
// of peers without a word, for there is no way to them any more.
func (s *Stack) Close() error {
	s.close.Do(func() {
		s.link.shut()
		s.stack.Close()
		s.stack.RemoveNIC(nic)
		s.stack.Wait()
	})
	return nil
}
