package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/userspace"
)

// Userspace says when a node has a TCP/IP stack of its own instead of a network
// device of the kernel. It then needs no right of the system, other programs of
// the machine do not see the overlay, and Listen, Dial, the services and the proxy
// work as with a device.
type Userspace int

const (
	UserspaceNever    Userspace = iota // an error where the kernel offers no device
	UserspaceFallback                  // where the kernel offers none, or not to us
	UserspaceAlways
)

// An ownStack is a device that is the host too: what it has listens and dials
// there.
type ownStack interface {
	services.Network
	DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	Unsent() bool // a connection that was closed here has bytes that the peer does not have
}

// openDevice opens the device that the configuration asks for.
func (n *Node) openDevice() (tun.Device, error) {
	cfg := &n.cfg
	open := cfg.OpenDevice
	if open == nil {
		open = tun.Open
	}
	want := tun.Config{
		Name: cfg.DeviceName, Address: hostPrefix(cfg.Identity.Addr().ULA()), Route: ipam.Prefix(), MTU: DefaultMTU, Logger: cfg.Logger,
		IPv6Probe: n.probeAddress(),
	}
	if cfg.Userspace == UserspaceAlways {
		return userspace.Open(want)
	}
	d, err := open(want)
	if err == nil || !lacksDevice(err) {
		return d, err
	}
	if help := new(tun.HelpError); cfg.Userspace == UserspaceNever && errors.As(err, &help) {
		return nil, &tun.HelpError{Err: help.Err, Help: help.Help + "; or do without a device: --tun userspace"}
	}
	if cfg.Userspace == UserspaceNever {
		return nil, err
	}
	n.lacks = err
	n.log.Warn("no network device to be had: userspace mode; programs reach peers through the proxy only", "err", err)
	return userspace.Open(want)
}

// lacksDevice says whether an error means that this machine will not give us a
// device, rather than that something is in its way.
func lacksDevice(err error) bool {
	return errors.Is(err, tun.ErrPermission) || errors.Is(err, tun.ErrNoDevice) || errors.Is(err, tun.ErrIPv6Disabled) || errors.Is(err, errors.ErrUnsupported)
}

// stack is the node's own TCP/IP stack; nil with a device of the kernel.
func (n *Node) stack() ownStack {
	s, _ := n.cfg.Device.(ownStack)
	return s
}

// network is where the agent listens.
func (n *Node) network() services.Network {
	if n.cfg.Network != nil {
		return n.cfg.Network
	}
	if s := n.stack(); s != nil {
		return s
	}
	return services.Kernel{Addr: n.plane.own, Device: n.plane.device.Name()}
}

// deviceStatus describes the device.
func (n *Node) deviceStatus() DeviceStatus {
	d, names := n.plane.device, n.naming.status()
	s := DeviceStatus{
		Name: d.Name(), MTU: d.MTU(), Offload: deviceOffload(d.Offload()), Userspace: n.stack() != nil,
		DNS: string(names.Mode), DNSNotes: names.Notes,
	}
	if n.lacks != nil {
		s.Why = publicError(n.lacks).Message
	}
	if n.proxy != nil {
		s.Proxy = n.proxy.Addr().String()
	}
	return s
}

// Listen listens for TCP connections of peers on the agent's own address. Only
// peers get through, as far as their grants reach: each connection is a
// *services.Conn, whose Peer says who it is. Port 0 takes a free one.
func (n *Node) Listen(ctx context.Context, port uint16) (net.Listener, error) {
	l, err := n.serving.env.Listen(ctx, port, nil)
	if err != nil {
		return nil, fmt.Errorf("overlay: listen on port %d: %w", port, err)
	}
	return l, nil
}

// Dial connects from the agent's own address to a peer, or to itself. address is
// HOST:PORT, where HOST is NAME.pilot.internal, or the peer's name, address or
// IPv6 address; network is "tcp" or "udp". It has the signature of
// http.Transport.DialContext. The error is a *Error if there is no such peer, or
// none that lets us reach the port, and that of package net if it did not answer.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, Errorf(CodeInvalidArgument, "%v", err).WithHint("write HOST:PORT, such as bob.pilot.internal:80")
	}
	p, err := net.DefaultResolver.LookupPort(ctx, network, port)
	if err != nil {
		return nil, Errorf(CodeInvalidArgument, "port %.20q: %v", port, err)
	}
	ip, err := n.lookup(network, host, uint16(p))
	if err != nil {
		return nil, err
	}
	return n.dialAddr(ctx, network, netip.AddrPortFrom(ip, uint16(p)))
}

// lookup finds the address of a peer whose grant has the port, or of this agent. A
// packet to another port would be dropped by the peer without a word.
func (n *Node) lookup(network, host string, port uint16) (netip.Addr, error) {
	own := n.cfg.Identity
	if ref, err := ipam.ParseRef(host); err == nil && matches(ref, n.cfg.Name, own.Addr().Bytes(), own.Key.Public().Fingerprint()) {
		return own.Addr().ULA(), nil
	}
	key, err := n.resolvePeer(host)
	if err != nil {
		return netip.Addr{}, err
	}
	p, ok := n.store.Peer(key)
	if !ok {
		return netip.Addr{}, Errorf(CodeNotFound, "no peer %q", host)
	}
	proto := uint8(trust.ProtoTCP)
	if strings.HasPrefix(network, "udp") {
		proto = trust.ProtoUDP
	}
	if !p.Out.Allows(proto, port) {
		return netip.Addr{}, Errorf(CodeNotTrusted, "%s does not let this agent reach its port %d", p.Name, port).
			WithHint("ask for it: pilotctl trust request CONTACT --ports %d --reason TEXT", port)
	}
	return ipam.AddrFromBytes(p.Addr).ULA(), nil
}

// serviceDialTime is how long a peer may take to answer a service of ours.
const serviceDialTime = 10 * time.Second

// dialPeer connects to a port of a peer, for services.
func (n *Node) dialPeer(ctx context.Context, to services.Peer, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceDialTime)
	defer cancel()
	return n.dialAddr(ctx, "tcp", netip.AddrPortFrom(to.Addr.ULA(), port))
}

// dialAddr connects to an address of the overlay.
func (n *Node) dialAddr(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if s := n.stack(); s != nil {
		return s.DialContext(ctx, network, to)
	}
	if d, ok := n.cfg.Network.(services.Dialer); ok {
		return d.DialContext(ctx, network, to.String())
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to.String())
}
