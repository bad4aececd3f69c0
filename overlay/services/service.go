package services

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
)

// A Service serves until ctx ends. When Run returns, nothing of it is left: no
// listener, connection or goroutine.
type Service interface {
	Name() string // one word, as in the configuration
	Port() uint16 // its well-known port; 0: none of its own
	Run(ctx context.Context, env Env) error
}

// A Peer is who calls: a trusted agent, or this agent itself.
type Peer struct {
	Name        string // the owner's petname, never the peer's own words
	Addr        ipam.Addr
	Fingerprint crypto.Fingerprint
	Self        bool
}

// An Env is what the node gives to a service.
type Env struct {
	Network Network
	// Whois says who has a source address now. False: nobody who is trusted.
	Whois func(netip.Addr) (Peer, bool)
	// Peer says which trusted agent has a fingerprint now.
	Peer func(crypto.Fingerprint) (Peer, bool)
	// Dial connects to a port of a peer; nil: over the kernel's network.
	Dial func(ctx context.Context, to Peer, port uint16) (net.Conn, error)
	// StateDir is where a service keeps what it must not lose, in a directory
	// of its own name. The node holds the lock on it.
	StateDir string
	// Ready is called by the service once it listens.
	Ready  func()
	Logger *slog.Logger
}

// A Network makes listeners on the agent's own address that hear peers, and
// programs of this machine, and nobody else. Connections may have CloseWrite, as
// *net.TCPConn has.
type Network interface {
	Listen(ctx context.Context, port uint16) (net.Listener, error)
	ListenPacket(ctx context.Context, port uint16) (net.PacketConn, error)
}

// A Dialer is a Network of a machine that is not the one that the agent runs on: its
// programs, those on its loopback too, are reached from there.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// source is the address in a, without port and zone.
func source(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// From says who sent a datagram.
func (e Env) From(a net.Addr) (Peer, bool) { return e.Whois(source(a)) }
