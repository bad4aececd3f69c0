package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/trust"
)

func (p *program) trustCommand() *cli.Command {
	return &cli.Command{
		Name:  "trust",
		Usage: "ask for trust, grant it, list it, end it",
		Subcommands: []*cli.Command{
			p.requestCommand(), p.pendingCommand(), p.listCommand(), p.approveCommand(), p.rejectCommand(),
			p.revokeCommand(), p.blockCommand(), p.confirmCommand(), p.inviteCommand(), p.acceptCommand(),
		},
	}
}

const portsUsage = "ports, as 80,8080/tcp,53/udp,1000-1003, all or none"

func checkPorts(flag, text string) error {
	if _, err := trust.ParseScope(text); err != nil {
		return badInput(err, flag+" takes "+portsUsage)
	}
	return nil
}

// peerArgument reads the one argument of verbs that act on a peer.
func peerArgument(c *cli.Context) (string, error) {
	args, err := arguments(c, "a peer")
	if err != nil {
		return "", err
	}
	if _, err := ipam.ParseRef(args[0]); err != nil {
		return "", badInput(err, "a peer is a name, an address, a ULA, a fingerprint or a contact")
	}
	return args[0], nil
}

// onPeer is the action of verbs that need nothing but a peer.
func (p *program) onPeer(do func(*api.Client, context.Context, string) error, done string) cli.ActionFunc {
	return func(c *cli.Context) error {
		peer, err := peerArgument(c)
		if err != nil {
			return err
		}
		client, err := p.client(c)
		if err != nil {
			return err
		}
		if err := do(client, c.Context, peer); err != nil {
			return err
		}
		return p.result(map[string]string{"peer": peer}, func(w io.Writer) { fmt.Fprintf(w, done+"\n", peer) })
	}
}

// exposed tells which sockets of this machine a grant of all ports opens.
func exposed(w io.Writer, who string, listening []string) {
	if len(listening) == 0 {
		return
	}
	fmt.Fprintf(w, "%s may now reach every port; these sockets listen here:\n", who)
	for _, l := range listening {
		fmt.Fprintf(w, "  %s\n", l)
	}
}

// granted tells of trust that stands.
func granted(w io.Writer, r overlay.TrustResult) {
	fmt.Fprintf(w, "%s trusts us\n", r.Name)
	facts(w, "address", r.Address, "ula", r.ULA, "host", r.Name+"."+ipam.Suffix, "we may reach", portsText(r.Ports))
	fmt.Fprintf(w, "next: pilotctl ping %s\n", r.Name)
}
