package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/urfave/cli/v2"
)

func (p *program) whoisCommand() *cli.Command {
	return &cli.Command{
		Name:      "whois",
		Usage:     "say which peer a source address belongs to",
		ArgsUsage: "IP[:PORT]",
		Description: `For servers that want to know their caller: the source address of a connection is
the peer's identity. An IPv6 address with a port is written [ADDRESS]:PORT.`,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "an address")
			if err != nil {
				return err
			}
			if _, err := netip.ParseAddr(args[0]); err != nil {
				if _, err := netip.ParseAddrPort(args[0]); err != nil {
					return usagef("%.60q is no IP address", args[0]).WithHint("write fd50:494c:4f54::1 or [fd50:494c:4f54::1]:80")
				}
			}
			client, err := p.client(c)
			if err != nil {
				return err
			}
			who, err := client.Whois(c.Context, args[0])
			if err != nil {
				return err
			}
			return p.result(who, func(w io.Writer) {
				fmt.Fprintln(w, who.Name)
				facts(w, "address", who.Address, "ula", who.ULA, "fingerprint", who.Fingerprint)
				if who.Self {
					facts(w, "this is", "this agent itself")
					return
				}
				facts(w, "may reach", portsText(who.In), "offers us", portsText(who.Out), "expires", p.until(who.Expires))
			})
		},
	}
}

// portsText shows a scope; an empty one still lets ping pass.
func portsText(scope string) string { return either(scope, "ping only") }
