package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
)

func (p *program) approveCommand() *cli.Command {
	return &cli.Command{
		Name:      "approve",
		Usage:     "grant a request, or change what a peer may reach",
		ArgsUsage: "PEER",
		Description: `Grants what was asked unless --ports or --ttl narrow it. All ports are granted
only by --ports all, which then lists what listens here. Needs the govern socket.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "as", Usage: "our name for the peer; default: its own suggestion"},
			&cli.StringFlag{Name: "ports", Usage: "what it may reach: " + portsUsage},
			&cli.StringFlag{Name: "ttl", Usage: "how long, as 12h or 30d"},
		},
		Action: func(c *cli.Context) error {
			peer, err := peerArgument(c)
			if err != nil {
				return err
			}
			o, err := approveOptions(c, peer)
			if err != nil {
				return err
			}
			client, err := p.client(c)
			if err != nil {
				return err
			}
			r, err := client.Approve(c.Context, o)
			if err != nil {
				return err
			}
			return p.result(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s is trusted\n", r.Name)
				facts(w, "may reach", portsText(r.Ports), "address", r.Address, "ula", r.ULA, "host", r.Name+"."+ipam.Suffix,
					"fingerprint", r.Fingerprint)
				exposed(w, r.Name, r.Listening)
				fmt.Fprintf(w, "undo: pilotctl trust revoke %s\n", r.Name)
			})
		},
	}
}

func approveOptions(c *cli.Context, peer string) (overlay.ApproveOptions, error) {
	o := overlay.ApproveOptions{Peer: peer, As: c.String("as")}
	if o.As != "" {
		if err := ipam.ValidName(o.As); err != nil {
			return o, badInput(err, "a name is like bob or build-7")
		}
	}
	if c.IsSet("ports") {
		ports := c.String("ports")
		if err := checkPorts("--ports", ports); err != nil {
			return o, err
		}
		o.Ports = &ports
	}
	if text := c.String("ttl"); text != "" {
		ttl, err := parseDuration(text)
		if err != nil {
			return o, err
		}
		o.TTL = &ttl
	}
	return o, nil
}
