package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

const lookupTime = 3 * time.Second

func (p *program) dnsCommand() *cli.Command {
	return &cli.Command{
		Name:        "dns",
		Usage:       "show how programs find peers by name",
		Subcommands: []*cli.Command{p.dnsStatusCommand(), p.dnsQueryCommand()},
	}
}

// A dnsStatus is how names are made known to this machine.
type dnsStatus struct {
	Mode     resolv.Mode `json:"mode"`
	Resolver string      `json:"resolver"`
	Zones    []string    `json:"zones"`
	Notes    []string    `json:"notes"`
}

// modeText says what a mode means to the machine's programs.
func (s dnsStatus) modeText() string {
	switch s.Mode {
	case resolv.Resolved:
		return "resolved: systemd-resolved asks the agent's resolver about its zones"
	case resolv.Resolvconf:
		return "resolvconf: resolv.conf names the agent's resolver first; it refuses other questions, and programs ask the next"
	case resolv.Files:
		return "files: " + resolv.DefaultResolverDir + " names the agent's resolver for its zones"
	case resolv.HostFile:
		return "hosts: the hosts file holds the names"
	}
	return "off: programs do not know the names"
}

func (p *program) dnsStatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show by what means names are known, and why not by a better one",
		Action: shows(p, readDNS, func(w io.Writer, s dnsStatus) {
			facts(w, "names", s.modeText(), "resolver", s.Resolver, "zones", strings.Join(s.Zones, ", "))
			for _, note := range s.Notes {
				facts(w, "note", note)
			}
		}),
	}
}

func readDNS(client *api.Client, ctx context.Context) (dnsStatus, error) {
	s, err := client.Status(ctx)
	if err != nil {
		return dnsStatus{}, err
	}
	return dnsStatus{
		Mode: resolv.Mode(s.Device.DNS), Resolver: dns.Address().String(), Zones: []string{dns.Domain, dns.ReverseDomain},
		Notes: append([]string{}, s.Device.DNSNotes...),
	}, nil
}

// A dnsAnswer is what the two who can be asked say.
type dnsAnswer struct {
	Name   string   `json:"name"`
	Agent  []string `json:"agent"`  // its resolver
	System []string `json:"system"` // what programs are told
}

func (p *program) dnsQueryCommand() *cli.Command {
	return &cli.Command{
		Name:      "query",
		Usage:     "look up a name or an address as programs do",
		ArgsUsage: "NAME",
		Description: `Asks the agent's resolver and this machine's. A NAME without a dot is one of a
peer. The exit status is 4 if the agent knows no such name, and 9 if it does but
this machine's programs would not find it.`,
		Action: func(c *cli.Context) error {
			client, args, err := p.asked(c, "a name")
			if err != nil {
				return err
			}
			s, err := readDNS(client, c.Context)
			if err != nil {
				return err
			}
			a := dnsAnswer{Name: strings.TrimSuffix(args[0], "."), System: []string{}}
			if _, err := netip.ParseAddr(a.Name); err != nil && !strings.Contains(a.Name, ".") {
				a.Name += "." + dns.Domain
			}
			if a.Agent, err = p.lookup(c.Context, netip.AddrPortFrom(dns.Address(), 53), a.Name); err != nil {
				return lookupError(a.Name, err)
			}
			if s.Mode != resolv.Off {
				if a.System, err = p.lookup(c.Context, netip.AddrPort{}, a.Name); err != nil {
					e := overlay.Errorf(overlay.CodeNotFound, "the agent knows %s (%s), but this machine's programs do not: %v", a.Name, strings.Join(a.Agent, ", "), err).
						WithHint("pilotctl dns status tells how names are made known").Retry()
					return &statusError{status: exitCheckFailed, err: e}
				}
			}
			return p.result(a, func(w io.Writer) {
				fmt.Fprintln(w, a.Name)
				facts(w, "agent", strings.Join(a.Agent, ", "), "system", either(strings.Join(a.System, ", "), "not asked (dns is off)"))
			})
		},
	}
}

func lookupError(name string, err error) error {
	var e *net.DNSError
	if errors.As(err, &e) && e.IsNotFound {
		return overlay.Errorf(overlay.CodeNotFound, "no trusted peer is called %s", name).
			WithHint("pilotctl peers lists the names")
	}
	if errors.As(err, &e) && e.IsTimeout {
		return overlay.Errorf(overlay.CodeTimeout, "the agent's resolver does not answer").
			WithHint("is this the network namespace of the daemon?").Retry()
	}
	return overlay.Errorf(overlay.CodeInternal, "look up %s: %v", name, err)
}

// lookupNames asks the resolver at server, or this machine's if it is zero, for
// the addresses of a name or the names of an address.
func lookupNames(ctx context.Context, server netip.AddrPort, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	r := net.DefaultResolver
	if server.IsValid() {
		r = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.String())
		}}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		list, err := r.LookupAddr(ctx, a.String())
		for i := range list {
			list[i] = strings.TrimSuffix(list[i], ".")
		}
		return list, err
	}
	return r.LookupHost(ctx, name+".")
}
