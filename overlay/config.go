package overlay

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/portmap"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/resolv"
)

// Config says what node New makes. The zero value of an optional field chooses
// the default named beside it.
type Config struct {
	// StateDir is the directory that holds the agent's secrets and trust.
	StateDir string
	// Name is what the agent calls itself, and what it suggests to others.
	Name string
	// Identity is who it is.
	Identity ipam.Identity
	// Servers are its home servers; at most MaxServers are used.
	Servers []crypto.Server
	// Device is the virtual NIC; the node closes it. Nil: OpenDevice is called
	// by New with the address of the identity.
	Device     tun.Device
	OpenDevice func(tun.Config) (tun.Device, error) // nil: tun.Open
	DeviceName string                               // default "pilot0"
	// Userspace says when there is no device of the kernel.
	Userspace Userspace
	// Proxy is where programs that do not see the overlay reach it, by SOCKS 5 or
	// as an HTTP proxy: ADDRESS:PORT of the loopback; ProxyAuto, in userspace mode;
	// or empty, for nowhere.
	Proxy string
	// DNS says how names become known to the programs of this host: resolv.Auto,
	// resolv.Resolvconf, resolv.HostFile (the default where HostsFile is given) or resolv.Off.
	// Packets to the resolver's address are answered in any case.
	DNS resolv.Mode
	// DNSSearch makes the bare names of peers work as well.
	DNSSearch bool
	// HostsFile receives the names of trusted peers; default
	// "/etc/hosts".
	HostsFile string
	// Port of the UDP socket; 0: the stored one, or one that the system chooses
	// and that is then stored.
	Port uint16
	// Takeover makes this instance win over another one that runs with the same
	// key.
	Takeover bool
	// Services are those at well-known ports; nil for none.
	Services []services.Service
	// Network is where services and published programs listen; nil: the kernel's
	// sockets, on the device.
	Network services.Network
	// Version is told in Status.
	Version string
	// Underlay is the network that the tunnels run on; nil: the host's.
	Underlay Underlay
	// Proxies lead to servers where nothing else does; zero: none.
	Proxies Proxies
	// STUN are servers of others that are asked, besides our own, how our NAT maps; at
	// most MaxSTUN are used.
	STUN []STUNServer
	// Clock tells the time; nil: the host's.
	Clock Clock
	// Logger receives what an operator should know; nil for nobody.
	Logger *slog.Logger
}

// Proxies says which HTTP proxies there are.
type Proxies struct {
	// Find is a function such as golang.org/x/net/http/httpproxy.Config.ProxyFunc
	// returns. Nil: there is none.
	Find func(*url.URL) (*url.URL, error)
	// CA verifies HTTPS proxies; nil: the system's.
	CA *x509.CertPool
}

const (
	// MaxServers is the number of home servers an agent registers with.
	MaxServers = 4
	// MaxSTUN is the number of STUN servers that are asked besides our own.
	MaxSTUN = 4
)

// An Underlay is the network under the tunnels. Tests inject one in memory.
type Underlay interface {
	// ListenUDP opens the agent's one UDP socket.
	ListenUDP(port uint16) (natt.PacketConn, error)
	// DialContext opens the stream to a home server.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// LookupNetIP resolves a server's name.
	LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error)
	// Interfaces lists the host's addresses with the networks they are on.
	Interfaces() ([]netip.Prefix, error)
	// MapPort asks the gateways to let the Internet reach a UDP port of ours
	// and tells the addresses that it is reached at as they come and go, until
	// ctx ends; changed must not block.
	MapPort(ctx context.Context, port uint16, changed func([]netip.AddrPort)) error
	// Changes tells that the host's network changed, until ctx ends; nil if
	// the host cannot tell.
	Changes(ctx context.Context) <-chan struct{}
}

// A Clock tells time. Boot never goes backwards and counts sleep; it is what
// the age of keys is measured with.
type Clock interface {
	Now() time.Time
	Boot() time.Duration
}

// hostUnderlay is the network of this machine.
type hostUnderlay struct{ log *slog.Logger }

func (h hostUnderlay) ListenUDP(port uint16) (natt.PacketConn, error) {
	return natt.Listen(natt.ListenConfig{
		Addr:         netip.AddrPortFrom(netip.IPv6Unspecified(), port),
		DontFragment: true,
		Logger:       h.log,
	})
}

func (hostUnderlay) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: narrow}
	return d.DialContext(ctx, network, address)
}

func (hostUnderlay) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, err
}

func (h hostUnderlay) MapPort(ctx context.Context, port uint16, changed func([]netip.AddrPort)) error {
	var m *portmap.Mapper
	m, err := portmap.New(portmap.Config{
		Port: func() uint16 { return port }, Exclude: ipam.Prefix(), Logger: h.log,
		OnChange: func(portmap.Mapping) {
			var list []netip.AddrPort
			for _, p := range m.Mappings() {
				if p.External.IsValid() {
					list = append(list, p.External)
				}
			}
			changed(list)
		},
	})
	if err != nil {
		return err
	}
	if changes := h.Changes(ctx); changes != nil {
		go kickOnChange(ctx, changes, m.Kick)
	}
	return m.Run(ctx)
}

// kickPause is how long after a change the gateways are asked again, for changes come
// in swarms; and how long there is until the next time.
const kickPause = time.Second

// kickOnChange has the gateways asked anew when the network has changed.
func kickOnChange(ctx context.Context, changes <-chan struct{}, kick func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(kickPause):
		}
		select {
		case <-changes: // was part of it
		default:
		}
		kick()
	}
}

func (hostUnderlay) Interfaces() ([]netip.Prefix, error) { return natt.Interfaces() }
