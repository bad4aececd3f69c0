package overlay

import (
	"context"
	"net/netip"
	"os"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay/services/publish"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/resolv"
)

// naming makes the names of trusted peers known: to who asks our resolver, and
// to the host, which is to ask it or has them in a file.
type naming struct {
	zone *dns.Zone
	host *resolv.Manager // nil: off
}

func (n *Node) newNaming() naming {
	m := naming{zone: dns.NewZone()}
	if n.namesOff() {
		return m
	}
	mode, file := n.cfg.DNS, n.cfg.HostsFile
	if mode == "" {
		mode = resolv.HostFile
	}
	if file == "" {
		file = "/etc/hosts"
	}
	m.host = resolv.NewManager(resolv.Config{
		Mode: mode, Device: n.cfg.Device.Name(), Server: dns.Address(), Route: ipam.Prefix(), Domain: dns.Domain, Reverse: dns.ReverseDomain,
		Search: n.cfg.DNSSearch, Probe: dns.ServerName, HostsFile: file,
		Tag: n.cfg.Identity.Key.Public().Fingerprint().String(), Logger: n.log,
	})
	return m
}

func (n *Node) namesOff() bool {
	// In userspace mode the programs that would ask cannot reach what they would
	// be told; the proxy knows the names.
	return n.cfg.DNS == resolv.Off || n.cfg.DNS == "" && n.cfg.HostsFile == "" || n.stack() != nil
}

// probeAddress is what browsers have to find a route to, if they are to find
// names.
func (n *Node) probeAddress() netip.Addr {
	if n.namesOff() {
		return netip.Addr{}
	}
	return tun.WellKnownProbe()
}

func (m naming) status() resolv.Status {
	if m.host == nil {
		return resolv.Status{Mode: resolv.Off}
	}
	return m.host.Status()
}

// publishNames keeps the names up to date until ctx ends. It runs beside the
// loop, and the host's part of it beside the resolver's, since files and other
// services may be slow.
func (n *Node) publishNames(ctx context.Context) {
	changed, ended := make(chan struct{}, 1), make(chan struct{})
	n.naming.zone.Set(n.nameEntries())
	go func() {
		defer close(ended)
		if n.naming.host != nil {
			n.naming.host.Run(ctx, changed, n.hostEntries)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			<-ended
			return
		case <-n.loop.names:
		}
		n.naming.zone.Set(n.nameEntries())
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// nameEntries are this agent, with what it publishes, and those that it trusts,
// with the services at well-known ports that they let us reach.
func (n *Node) nameEntries() []dns.Entry {
	var list []dns.Entry
	if n.cfg.Name != "" {
		e := dns.Entry{Name: n.cfg.Name, Addr: n.cfg.Identity.Addr(), Fingerprint: n.cfg.Identity.Key.Public().Fingerprint()}
		for _, s := range n.serving.publisher.List() {
			if s.Kind != publish.TCP { // of that one nobody knows what it is
				e.Services = append(e.Services, dns.Service{Name: string(s.Kind), Port: s.Port})
			}
		}
		list = append(list, e)
	}
	for _, p := range n.store.Peers() {
		if p.Name == "" || p.State != trust.Active {
			continue
		}
		e := dns.Entry{Name: p.Name, Addr: ipam.AddrFromBytes(p.Addr), Fingerprint: p.Key.Fingerprint()}
		for _, s := range wellKnown {
			if p.Out.Allows(trust.ProtoTCP, s.Port) {
				e.Services = append(e.Services, s)
			}
		}
		list = append(list, e)
	}
	return list
}

// wellKnown are the services of every agent that have a name of their own among
// the services of the Internet, or among agents. Whether a peer has switched one
// off shows when it is used.
var wellKnown = []dns.Service{{Name: "echo", Port: 7}, {Name: "mqtt", Port: 1002}, {Name: "a2a", Port: 1003}}

// hostEntries are the lines of a hosts file. Where bare names are wanted, those
// of peers are there too; the machine's own name stays what it is.
func (n *Node) hostEntries() []resolv.Entry {
	machine, _ := os.Hostname() // without one nothing is kept back
	var list []resolv.Entry
	for _, e := range n.nameEntries() {
		names := []string{e.Name + "." + dns.Domain}
		if n.cfg.DNSSearch && e.Name != n.cfg.Name && e.Name != machine {
			names = append(names, e.Name)
		}
		list = append(list, resolv.Entry{Addr: e.Addr.ULA(), Names: names})
	}
	return list
}
