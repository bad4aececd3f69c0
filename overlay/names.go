package overlay

import (
	"context"
	"net/netip"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
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
		Mode: mode, Device: n.cfg.Device.Name(), Server: dns.Address(), Domain: dns.Domain, Reverse: dns.ReverseDomain,
		Search: n.cfg.DNSSearch, Probe: dns.ServerName, HostsFile: file,
		Tag: n.cfg.Identity.Key.Public().Fingerprint().String(), Logger: n.log,
	})
	return m
}

func (n *Node) namesOff() bool {
	return n.cfg.DNS == resolv.Off || n.cfg.DNS == "" && n.cfg.HostsFile == ""
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

// nameEntries are this agent and those that it trusts.
func (n *Node) nameEntries() []dns.Entry {
	var list []dns.Entry
	if n.cfg.Name != "" {
		list = append(list, dns.Entry{
			Name: n.cfg.Name, Addr: n.cfg.Identity.Addr(), Fingerprint: n.cfg.Identity.Key.Public().Fingerprint(),
		})
	}
	for _, p := range n.store.Peers() {
		if p.Name != "" && p.State == trust.Active {
			list = append(list, dns.Entry{Name: p.Name, Addr: ipam.AddrFromBytes(p.Addr), Fingerprint: p.Key.Fingerprint()})
		}
	}
	return list
}

func (n *Node) hostEntries() []resolv.Entry {
	var list []resolv.Entry
	for _, e := range n.nameEntries() {
		list = append(list, resolv.Entry{Addr: e.Addr.ULA(), Names: []string{e.Name + "." + dns.Domain}})
	}
	return list
}
