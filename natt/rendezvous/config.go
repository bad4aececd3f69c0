package rendezvous

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// Config describes a server. Only StateDir is required, or Key and Store instead.
type Config struct {
	// Listen is where to take UDP and TLS, both on each port. Empty: port 3478 and
	// port 443 on all addresses, where 443 failing is only a warning. The address may
	// be unspecified.
	Listen []netip.AddrPort
	// StateDir holds the key, certificate, store and session bindings. Empty: nothing is kept.
	StateDir string
	// Public is the name or address, with or without a port, by which agents reach
	// this server, if that is not where it listens.
	Public string
	// Key is the server's key; zero: LoadKey(StateDir).
	Key crypto.DHPrivate
	// CertFile and CertKeyFile hold a TLS certificate in PEM to show instead of the
	// self-signed one. They are read again when they change.
	CertFile, CertKeyFile string
	// ACME is a domain for which to get a certificate from Let's Encrypt, which asks
	// on port 443. By using it the operator accepts the terms of that service.
	ACME string
	// Store is where claims and mail are kept; nil: a BoltStore in StateDir. A given
	// store is not closed by Run.
	Store Store
	// UDP and TCP are used instead of Listen if there are any.
	UDP []natt.PacketConn
	TCP []net.Listener
	// Metrics is a loopback address for /metrics and /health; zero: none.
	Metrics netip.AddrPort
	// Ready is told the line with --server that agents need, once everything listens.
	Ready func(line string)
	// Now is the clock; nil: time.Now.
	Now    func() time.Time
	Logger *slog.Logger // nil: silent
	Limits Limits
}

// Limits bound what strangers can cost. Zero fields have the default values.
type Limits struct {
	Sessions       int           // home sessions, 100,000
	Channels       int           // relay channels, 100,000
	ChannelRate    int64         // bytes/s of one channel and direction, 6,250,000 (50 Mbit/s)
	Handshakes     float64       // HELLO and VISIT a second of one /24 or /48, 50
	HandshakeBurst int           // 500
	Queue          int           // handshakes that wait, 1024; above half of it sources must prove themselves
	Connections    int           // TCP connections, 4096
	NetConnections int           // TCP connections of one /24 or /48, 256
	Carriers       int           // of them, those that may carry datagrams, 3072
	Requests       float64       // new control channels and cards a second of one /24 or /48, 20
	RequestBurst   int           // 200
	Mailbox        int           // items in one box, 32
	MailAge        time.Duration // 7 days
	ClaimBits      int           // stamp of a first claim, 18
	MailBits       int           // stamp of a mail, 17
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (l *Limits) fill() {
	or(&l.Sessions, 100_000)
	or(&l.Channels, 100_000)
	or(&l.ChannelRate, 50_000_000/8)
	or(&l.Handshakes, 50)
	or(&l.HandshakeBurst, 500)
	or(&l.Queue, 1024)
	or(&l.Connections, 4096)
	or(&l.NetConnections, 256)
	or(&l.Carriers, 3072)
	or(&l.Requests, 20)
	or(&l.RequestBurst, 200)
	or(&l.Mailbox, 32)
	or(&l.MailAge, 7*24*time.Hour)
	or(&l.ClaimBits, 18)
	or(&l.MailBits, 17)
}

// New prepares a server: it loads or makes the key and opens the store. Run
// closes what New opened.
func New(cfg Config) (*Server, error) {
	cfg.Limits.fill()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StateDir == "" && (cfg.Key.IsZero() || cfg.Store == nil) {
		return nil, errors.New("rendezvous: no state directory")
	}
	if cfg.Metrics.IsValid() && !cfg.Metrics.Addr().IsLoopback() {
		return nil, fmt.Errorf("rendezvous: metrics on %s: only a loopback address is allowed", cfg.Metrics)
	}
	if cfg.Limits.ClaimBits > relay.MaxStampBits || cfg.Limits.MailBits > relay.MaxStampBits {
		return nil, fmt.Errorf("rendezvous: stamps of more than %d bits are refused by agents", relay.MaxStampBits)
	}
	var err error
	if cfg.Key.IsZero() {
		if cfg.Key, err = LoadKey(cfg.StateDir); err != nil {
			return nil, err
		}
	}
	s := newServer(cfg)
	if s.store == nil {
		if s.store, err = OpenBolt(filepath.Join(cfg.StateDir, storeFile)); err != nil {
			return nil, err
		}
		s.ownStore = true
	}
	return s, nil
}

// defaultListen is used when Config.Listen is empty. All but the first may fail.
var defaultListen = []netip.AddrPort{
	netip.AddrPortFrom(netip.IPv6Unspecified(), 3478),
	netip.AddrPortFrom(netip.IPv6Unspecified(), 443),
}

// listen opens the sockets and listeners.
func (s *Server) listen() error {
	if len(s.cfg.UDP) > 0 || len(s.cfg.TCP) > 0 {
		for _, c := range s.cfg.UDP {
			s.addSocket(c)
		}
		s.listeners = append(s.listeners, s.cfg.TCP...)
		return nil
	}
	addrs, optional := s.cfg.Listen, false
	if len(addrs) == 0 {
		addrs, optional = defaultListen, true
	}
	for i, addr := range addrs {
		u, t, err := listenBoth(addr, s.cfg.Logger)
		if err != nil && optional && i > 0 {
			s.cfg.Logger.Warn("port not available, agents behind strict firewalls will miss it", "port", addr.Port(), "err", err)
			continue
		}
		if err != nil {
			return err
		}
		s.addSocket(u)
		s.listeners = append(s.listeners, t)
	}
	return nil
}

func (s *Server) addSocket(c natt.PacketConn) {
	s.sockets = append(s.sockets, &socket{conn: c, index: len(s.sockets), port: c.LocalAddr().Port()})
}

// listenBoth opens UDP and TCP on one port. With port 0 the system chooses it.
func listenBoth(addr netip.AddrPort, logger *slog.Logger) (natt.PacketConn, net.Listener, error) {
	tries := 1
	if addr.Port() == 0 {
		tries = 10 // the port that UDP got may be in use for TCP
	}
	var last error
	for range tries {
		u, err := natt.Listen(natt.ListenConfig{Addr: addr, PacketInfo: true, Logger: logger})
		if err != nil {
			return nil, nil, fmt.Errorf("rendezvous: listen on UDP %s: %w", addr, err)
		}
		network := "tcp"
		if addr.Addr().Is4() {
			network = "tcp4"
		}
		t, err := net.Listen(network, netip.AddrPortFrom(addr.Addr(), u.LocalAddr().Port()).String())
		if err == nil {
			return u, t, nil
		}
		u.Close()
		last = fmt.Errorf("rendezvous: listen on TCP %s: %w", addr, err)
	}
	return nil, nil, last
}

// line returns the flag that agents need to find this server.
func (s *Server) line() (string, error) {
	server := crypto.Server{Host: s.cfg.Public, Port: 3478, Key: s.public}
	if len(s.sockets) > 0 {
		local := s.sockets[0].conn.LocalAddr()
		server.Port = local.Port()
		if server.Host == "" {
			server.Host = hostName(local.Addr())
		}
	}
	if a, err := netip.ParseAddr(server.Host); err != nil || !a.Is6() {
		if host, port, err := net.SplitHostPort(server.Host); err == nil {
			ap, err := netip.ParseAddrPort("0.0.0.0:" + port)
			if err != nil {
				return "", fmt.Errorf("rendezvous: public name %q: %w", s.cfg.Public, err)
			}
			server.Host, server.Port = host, ap.Port()
		}
	}
	text := server.String()
	if _, err := crypto.ParseServer(text); err != nil {
		return "", fmt.Errorf("rendezvous: public name %q: %w", s.cfg.Public, err)
	}
	return "--server " + text, nil
}

// hostName returns the address to print for a socket bound to a: itself, or the
// most public one of this machine.
func hostName(a netip.Addr) string {
	if a.IsValid() && !a.IsUnspecified() {
		return a.Unmap().WithZone("").String()
	}
	best, score := "127.0.0.1", 0
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return best
	}
	for _, i := range addrs {
		p, err := netip.ParsePrefix(i.String())
		if err != nil {
			continue
		}
		a := p.Addr().Unmap()
		n := 0
		switch {
		case !a.IsGlobalUnicast():
		case a.Is4() && !a.IsPrivate():
			n = 4
		case a.Is4():
			n = 3
		case !a.IsPrivate():
			n = 2
		default:
			n = 1
		}
		if n > score {
			best, score = a.String(), n
		}
	}
	return best
}
