package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

// The states of a finding. Unknown is what this user may not see, or what cannot
// be told while the daemon is down.
const (
	fine    = "ok"
	doubt   = "warn"
	broken  = "fail"
	unknown = "unknown"
)

// A finding is what one check of doctor came to.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	Says  string `json:"says"`
	Do    string `json:"do,omitempty"` // what helps
}

// A diagnosis is all findings, in the order in which one thing needs another.
type diagnosis struct {
	Findings []finding `json:"findings"`
	Failed   int       `json:"failed"`
	Warnings int       `json:"warnings"`
}

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look for what is wrong on this machine, and say what helps",
		Description: `Looks at the daemon, its files, the clock, the device, IPv6, the firewall, the
servers and the names. It changes nothing, works while the daemon is down, and
sees more as root. The exit status is 9 if a check fails; warnings leave it 0.`,
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			d, err := p.diagnose(c)
			if err != nil {
				return err
			}
			if err := p.result(d, func(w io.Writer) { d.text(w) }); err != nil {
				return err
			}
			if d.Failed > 0 {
				return &statusError{status: exitCheckFailed}
			}
			return nil
		},
	}
}

// An examination is all that the findings follow from.
type examination struct {
	now     time.Time
	at      places
	config  error // of the settings
	set     settings
	status  overlay.Status
	down    *overlay.Error // why there is no status
	machine machineFacts
	names   nameFacts
}

// nameFacts are what the two who can be asked say of names that must be known.
type nameFacts struct {
	resolver error // the agent's, asked for itself
	system   error // the machine's, asked for this agent's name
}

func (p *program) diagnose(c *cli.Context) (diagnosis, error) {
	at, err := p.places(c)
	if err != nil {
		return diagnosis{}, err
	}
	e := examination{now: p.now(), at: at}
	e.set, e.config = p.settings(c, at)
	e.status, err = api.NewClient(at.socket).Status(c.Context)
	if err != nil {
		e.down = api.AsError(err)
	}
	proxies, err := p.proxies(e.set.caFile)
	if err != nil && e.config == nil {
		e.config = err
	}
	e.machine = p.examine(c.Context, subject{
		at: at, device: e.status.Device.Name, servers: e.set.servers, proxies: proxies, now: p.now,
	})
	if e.down == nil {
		e.names = p.askNames(c.Context, e.status)
	}
	if err := c.Context.Err(); err != nil {
		return diagnosis{}, err
	}
	return e.judge(), nil
}

// judge makes findings of what was seen. It asks nobody.
func (e *examination) judge() diagnosis {
	var d diagnosis
	for _, check := range []func() []finding{
		e.daemon, e.settings, e.state, e.clock, e.device, e.ipv6, e.firewall, e.servers, e.naming, e.services,
	} {
		d.Findings = append(d.Findings, check()...)
	}
	for _, f := range d.Findings {
		switch f.State {
		case broken:
			d.Failed++
		case doubt:
			d.Warnings++
		}
	}
	return d
}

func (d diagnosis) text(w io.Writer) {
	for _, f := range d.Findings {
		fmt.Fprintf(w, "%-8s %-9s %s\n", f.State, f.Check, f.Says)
		if f.Do != "" {
			fmt.Fprintf(w, "%-8s %-9s -> %s\n", "", "", f.Do)
		}
	}
	switch {
	case d.Failed == 0 && d.Warnings == 0:
		fmt.Fprintln(w, "nothing is wrong here, as far as can be seen")
	default:
		fmt.Fprintf(w, "failed: %d, warnings: %d\n", d.Failed, d.Warnings)
	}
}

// askNames asks for the resolver itself and for this agent, by name.
func (p *program) askNames(ctx context.Context, s overlay.Status) (n nameFacts) {
	if s.Device.DNS == string(resolv.Off) {
		return n
	}
	n.resolver = p.resolves(ctx, netip.AddrPortFrom(dns.Address(), 53), dns.ServerName, dns.Address().String())
	if s.Name != "" {
		n.system = p.resolves(ctx, netip.AddrPort{}, s.Name+"."+dns.Domain, s.ULA)
	}
	return n
}

// resolves returns nil if the resolver at server, or this machine's if it is
// zero, gives a name that address.
func (p *program) resolves(ctx context.Context, server netip.AddrPort, name, address string) error {
	list, err := p.lookup(ctx, server, name)
	var e *net.DNSError
	switch {
	case errors.As(err, &e) && e.IsNotFound:
		return errors.New("no such name")
	case errors.As(err, &e) && e.IsTimeout:
		return errors.New("no answer")
	case errors.As(err, &e): // "dial udp ADDRESS: connect: network is unreachable"
		return errors.New(strings.TrimSpace(e.Err[strings.LastIndex(e.Err, ": ")+1:]))
	case err != nil:
		return err
	case !slices.Contains(list, address):
		return fmt.Errorf("%s is not %s", strings.Join(list, ", "), address)
	}
	return nil
}
