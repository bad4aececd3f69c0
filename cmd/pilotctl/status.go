package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show requests that wait, this agent, its servers and peers",
		Description: `--check live succeeds when the daemon answers, --check ready when a home server
knows it too; otherwise the exit status is 9.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "watch", Usage: "show it again every --interval"},
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "with --watch"},
			&cli.StringFlag{Name: "check", Usage: "live or ready: print nothing else, exit 0 or 9"},
			&cli.BoolFlag{Name: "drops", Usage: "count the dropped packets by reason"},
		},
		Action: func(c *cli.Context) error {
			client, _, err := p.asked(c)
			if err != nil {
				return err
			}
			show := func() error {
				s, err := client.Status(c.Context)
				if err != nil {
					return err
				}
				return p.result(s, func(w io.Writer) { p.statusText(w, s, c.Bool("drops")) })
			}
			switch {
			case c.IsSet("check"):
				return p.check(c, client)
			case c.Bool("watch"):
				return p.repeat(c.Context, c.Duration("interval"), show)
			}
			return show()
		},
	}
}

// repeat calls show now and at every tick, until ctx ends or show fails.
func (p *program) repeat(ctx context.Context, every time.Duration, show func() error) error {
	if every < 100*time.Millisecond {
		return usagef("--interval %v is too short: at least 100ms", every)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if !p.json && p.terminal() {
			fmt.Fprint(p.stdout, "\x1b[H\x1b[2J")
		}
		if err := show(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *program) check(c *cli.Context, client *api.Client) error {
	level := c.String("check")
	if level != "live" && level != "ready" {
		return usagef("--check %.40q: want live or ready", level)
	}
	s, err := client.Status(c.Context)
	if err != nil {
		return &statusError{status: exitCheckFailed, err: err}
	}
	if level == "ready" && !ready(s) {
		e := overlay.Errorf(overlay.CodePeerOffline, "not ready: %s", notReady(s)).WithHint("pilotctl status tells more").Retry()
		return &statusError{status: exitCheckFailed, err: e}
	}
	return p.result(map[string]string{"check": level, "state": s.State}, func(w io.Writer) { fmt.Fprintln(w, level) })
}

// ready says whether others can find this agent: a home server knows it. An agent
// whose trust is suspended is of no use to them.
func ready(s overlay.Status) bool {
	return s.Suspended == nil && slices.ContainsFunc(s.Servers, func(s overlay.ServerStatus) bool { return s.State == "registered" })
}

func notReady(s overlay.Status) string {
	if s.Suspended != nil {
		return "all trust is suspended until pilotctl trust confirm"
	}
	if len(s.Servers) == 0 {
		return "no home server is configured"
	}
	var reasons []string
	for _, server := range s.Servers {
		reasons = append(reasons, serverText(server))
	}
	return strings.Join(reasons, "; ")
}

// serverText is one server's state, without its key.
func serverText(s overlay.ServerStatus) string {
	host, _, _ := strings.Cut(s.Server, "#")
	text := host + " " + s.State
	if s.State == "registered" {
		if rtt := millis(s.RTTMillis); rtt != "" {
			text += ", " + rtt
		}
		switch s.Via {
		case "udp-443":
			text += ", over UDP port 443"
		case "tls":
			text += ", over TLS, since UDP is blocked"
		case "proxy":
			text += ", through the HTTP proxy, since UDP is blocked"
		}
		if s.Observed != "" {
			text += ", sees us as " + s.Observed
		}
		if !s.Claimed {
			text += ", address not claimed yet"
		}
	}
	if s.Error != "" {
		text += ": " + briefly(s.Error)
	}
	// A self-signed certificate is what servers make; others deserve a look.
	if s.TLSWarning != "" && !strings.HasPrefix(s.TLSWarning, "self-signed") {
		text += " (TLS: " + s.TLSWarning + ")"
	}
	return text
}

// briefly leaves out of an error which server it is about.
func briefly(reason string) string {
	if rest, ok := strings.CutPrefix(reason, "relay: server "); ok {
		if _, why, ok := strings.Cut(rest, ": "); ok {
			return why
		}
	}
	return reason
}

func stateText(state string) string {
	switch state {
	case "":
		return "up"
	case "no_server":
		return "up, but no home server knows it"
	case "suspended":
		return "up, but all trust is suspended: pilotctl trust list, revoke who should not be there, then pilotctl trust confirm"
	case "conflict":
		return "stopped: another machine runs with the same identity (here: pilotctl down, then up --takeover)"
	}
	return state
}

func (p *program) statusText(w io.Writer, s overlay.Status, drops bool) {
	if len(s.Requests) > 0 {
		p.requestsText(w, s.Requests)
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%s is %s\n", s.Name, stateText(s.State))
	facts(w, "address", s.Address, "ula", s.ULA, "contact", s.Contact)
	if s.Suspended != nil {
		facts(w, "suspended", p.suspensionText(s.Suspended))
	}
	if !s.Claimed && len(s.Servers) > 0 {
		facts(w, "claim", "unclaimed: not every home server has confirmed the address")
	}
	for _, server := range s.Servers {
		facts(w, "server", serverText(server))
	}
	if len(s.Servers) == 0 {
		facts(w, "server", "none: others cannot find this agent; pilotctl up --server HOST#KEY")
	}
	if s.Lifetime.State == "known" {
		facts(w, "nat keeps", lifetimeText(s.Lifetime))
	}
	facts(w, "device", deviceText(s.Device), "proxy", proxyText(s.Device), "names", s.Device.DNS, "udp port", strconv.Itoa(int(s.Socket.Port)), "offloads", offloadText(s),
		"services", servicesText(s.Services), "up for", span(p.now().Sub(s.Started)))
	for _, warning := range s.Warnings {
		facts(w, "warning", warning)
	}
	fmt.Fprintln(w)
	p.peerTable(w, s.Peers)
	if drops {
		fmt.Fprintln(w)
		dropTable(w, s.Drops)
	}
}

// deviceText describes the device, and says why it is not one of the kernel's.
func deviceText(d overlay.DeviceStatus) string {
	switch {
	case d.Name == "":
		return ""
	case d.Why != "":
		return fmt.Sprintf("%s (%s), MTU %d", d.Name, d.Why, d.MTU)
	}
	return fmt.Sprintf("%s, MTU %d", d.Name, d.MTU)
}

// proxyText says where programs reach peers in userspace mode.
func proxyText(d overlay.DeviceStatus) string {
	if d.Userspace && d.Proxy == "" {
		return "off: programs of this machine cannot reach peers; pilotctl down, then up --proxy auto"
	}
	return d.Proxy
}

// offloadText says what the kernel does for the packet path: without these
// pilotctl does it itself, and more slowly.
func offloadText(s overlay.Status) string {
	if s.Device.Offload == "" {
		return ""
	}
	return "device " + s.Device.Offload + ", UDP " + s.Socket.Offload
}

// servicesText names the services with their ports, and says what ails them.
func servicesText(list []overlay.ServiceStatus) string {
	var texts []string
	for _, s := range list {
		text := fmt.Sprintf("%s %d", s.Name, s.Port)
		if s.State != "running" {
			text += " " + s.State
		}
		if s.Error != "" {
			text += " (" + s.Error + ")"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func dropTable(w io.Writer, drops map[string]uint64) {
	t := newTable(w)
	t.row("DROPPED", "PACKETS")
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		t.row(strings.ReplaceAll(reason, "_", " "), strconv.FormatUint(drops[reason], 10))
	}
	t.close()
}
