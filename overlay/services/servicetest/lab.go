// Package servicetest gives services a network without tunnels: each agent is
// an address in 127.0.0.0/8, so that who calls is told by the source address, as
// on the overlay. It needs a system that routes all of that network to itself,
// such as Linux.
package servicetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
)

// A Lab is the network of one agent, who is at 127.0.0.1, and its peers.
type Lab struct {
	t     testing.TB
	mu    sync.Mutex
	ports map[string]net.Addr // "tcp 7": where it is in truth
	peers map[string]services.Peer
	log   *slog.Logger
}

// New returns a lab whose agent trusts those peers.
func New(t testing.TB, peers ...string) *Lab {
	l := &Lab{t: t, ports: map[string]net.Addr{}, peers: map[string]services.Peer{}, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, name := range peers {
		l.Trust(name)
	}
	return l
}

// Agent is the identity that a name has in every lab.
func Agent(name string) services.Peer {
	sum := sha256.Sum256([]byte(name))
	return services.Peer{
		Name: name, Fingerprint: crypto.Fingerprint(sum[:16]),
		Addr: ipam.Addr{Node: 1<<16 | uint32(sum[0])<<8 | uint32(sum[1])},
	}
}

// source is the address in 127.0.0.0/8 that stands for an agent's.
func source(name string) netip.Addr {
	a := Agent(name).Addr.Node
	return netip.AddrFrom4([4]byte{127, 1, byte(a >> 8), byte(a)})
}

// Trust makes name a peer, and Revoke ends that.
func (l *Lab) Trust(name string) { l.set(name, true) }

// Revoke ends the trust in name.
func (l *Lab) Revoke(name string) { l.set(name, false) }

func (l *Lab) set(name string, trusted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if trusted {
		l.peers[name] = Agent(name)
		return
	}
	delete(l.peers, name)
}

// Env is what the node would give to a service.
func (l *Lab) Env() services.Env {
	return services.Env{Network: l, Whois: l.whois, Ready: func() {}, Logger: l.log}
}

func (l *Lab) whois(a netip.Addr) (services.Peer, bool) {
	if a == netip.MustParseAddr("127.0.0.1") {
		p := Agent("self")
		p.Self = true
		return p, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, p := range l.peers {
		if a == source(name) {
			return p, true
		}
	}
	return services.Peer{}, false
}

// Listen implements services.Network. A port is taken once.
func (l *Lab) Listen(ctx context.Context, port uint16) (net.Listener, error) {
	if _, ok := l.at("tcp", port); ok {
		return nil, fmt.Errorf("listen on port %d: %w", port, syscall.EADDRINUSE)
	}
	n, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	key := l.put("tcp", port, n.Addr())
	return &listener{Listener: n, closed: func() { l.drop(key) }}, nil
}

// ListenPacket implements services.Network.
func (l *Lab) ListenPacket(ctx context.Context, port uint16) (net.PacketConn, error) {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l.put("udp", port, c.LocalAddr())
	return c, nil
}

type listener struct {
	net.Listener
	closed func()
}

func (l *listener) Close() error {
	l.closed()
	return l.Listener.Close()
}

func (l *Lab) put(network string, port uint16, at net.Addr) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := fmt.Sprintf("%s %d", network, port)
	l.ports[key] = at
	return key
}

func (l *Lab) drop(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ports, key)
}

func (l *Lab) at(network string, port uint16) (net.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.ports[fmt.Sprintf("%s %d", network, port)]
	return a, ok
}

// Dial connects from an agent ("self" is the agent itself) to a port, and waits
// until somebody listens there.
func (l *Lab) Dial(ctx context.Context, from, network string, port uint16) (net.Conn, error) {
	d := net.Dialer{}
	ip := netip.MustParseAddr("127.0.0.1")
	if from != "self" {
		ip = source(from)
	}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if a, ok := l.at(network, port); ok {
			return d.DialContext(ctx, network, a.String())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("servicetest: nobody listens on %s port %d: %w", network, port, ctx.Err())
		case <-tick.C:
		}
	}
}

// MustDial is Dial that fails the test; the test closes the connection.
func (l *Lab) MustDial(from, network string, port uint16) net.Conn {
	l.t.Helper()
	c, err := l.Dial(l.t.Context(), from, network, port)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// Answer is what a service says to an agent that sends nothing: up to most
// bytes. An error is how the agent was turned away.
func (l *Lab) Answer(from string, port uint16, most int64) (string, error) {
	c, err := l.Dial(l.t.Context(), from, "tcp", port)
	if err != nil {
		return "", err
	}
	l.t.Cleanup(func() { c.Close() })
	b, err := io.ReadAll(io.LimitReader(c, most))
	return string(b), err
}

// Start runs a service until the test ends.
func (l *Lab) Start(s services.Service) { l.StartIn(s, l.Env()) }

// StartIn is Start with an environment that the test has changed.
func (l *Lab) StartIn(s services.Service, env services.Env) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, env) }()
	l.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			l.t.Errorf("%s: %v", s.Name(), err)
		}
	})
}
