package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) netcheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "netcheck",
		Usage: "find out how this machine is connected: its NAT, UDP, servers",
		Description: `Asks the home servers, and those of the setting stun, over STUN, from a socket of
its own; takes half a second, and longer where names have to be resolved. How a NAT filters can only be found out with a server that listens on two
addresses and two ports. How long it keeps a mapping that nothing uses is measured
in the background over minutes; here stands what is known so far.`,
		Action: shows(p, (*api.Client).Netcheck, netcheckText),
	}
}

func netcheckText(w io.Writer, n overlay.Netcheck) {
	switch {
	case len(n.Servers)+len(n.STUN) == 0:
		fmt.Fprintln(w, "no home server to ask; add one: pilotctl up --server HOST#KEY")
	case n.Mapping == "no-udp":
		fmt.Fprintln(w, "no UDP gets through to any server, or back")
	case n.Mapping == "none":
		fmt.Fprintln(w, "no NAT")
	case n.Mapping == "address" || n.Mapping == "address-and-port":
		fmt.Fprintln(w, "behind a hard NAT: it takes a new port for every destination")
	case n.Mapping == "endpoint-independent":
		fmt.Fprintln(w, "behind an easy NAT: it keeps one port for all destinations")
	default:
		fmt.Fprintln(w, "behind a NAT of unknown kind: no second server address to compare with")
	}
	step := ""
	if n.PortStep != 0 {
		step = fmt.Sprintf("%+d", n.PortStep)
	}
	ipv6 := "no"
	if n.IPv6 {
		ipv6 = "yes"
	}
	facts(w, "mapping", n.Mapping, "filtering", n.Filtering, "port step", step, "seen as", n.Mapped,
		"udp answers", portList(n.UDP), "udp silent", portList(n.UDPBlocked), "public ipv6", ipv6,
		"port mapped", strings.Join(n.PortMappings, ", "), "asked too", strings.Join(n.STUN, ", "), "mapping kept", lifetimeText(n.Lifetime))
	for _, s := range n.Servers {
		facts(w, "server", serverText(s))
	}
}

// lifetimeText says how long a NAT keeps a mapping that nothing uses, and what
// follows from that.
func lifetimeText(l overlay.LifetimeStatus) string {
	seconds := func(s float64) string { return strconv.FormatFloat(s, 'f', -1, 64) + " s" }
	var text string
	switch {
	case l.State == "":
		return "" // of a daemon that does not know yet what that is
	case l.State == "unknown":
		text = "unknown: " + l.Reason
	case l.AtLeast == 0:
		text = "not known yet: it is measured in the background, which takes minutes"
	default:
		text = "at least " + seconds(l.AtLeast)
		if l.Below != 0 {
			text += ", less than " + seconds(l.Below)
		}
		if l.State == "measuring" {
			text += " (still measuring)"
		}
	}
	return text + "; servers hear from us every " + seconds(l.Beat)
}

func portList(ports []uint16) string {
	var list []string
	for _, p := range ports {
		list = append(list, fmt.Sprint(p))
	}
	return strings.Join(list, ", ")
}
