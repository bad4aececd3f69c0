package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/trust"
)

const maxInvite = 24 * time.Hour

// An invitation as pilotctl prints it.
type invitation struct {
	Token   string    `json:"token"`
	ID      string    `json:"id"` // by which list and revoke know it
	Ports   string    `json:"ports"`
	Uses    int       `json:"uses"`
	Expires time.Time `json:"expires"`
}

func (p *program) inviteCommand() *cli.Command {
	return &cli.Command{
		Name:      "invite",
		Usage:     "make a token that grants trust to whoever uses it first",
		UsageText: "pilotctl trust invite FLAGS | list | revoke ID",
		Description: `Whoever has the token gets the ports: hand it over in private. It works once and
for at most 24 hours; --for ties it to one agent. With --uses N it is for a fleet: each of
N agents gets a grant of its own, and nobody has to approve. Needs the govern socket.`,
		Subcommands: []*cli.Command{p.inviteListCommand(), p.inviteRevokeCommand()},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "ports", Usage: "what it grants (required): " + portsUsage},
			&cli.StringFlag{Name: "ttl", Usage: "how long it can be used, as 1h (required)"},
			&cli.StringFlag{Name: "for", Usage: "contact or fingerprint of the only agent that may use it"},
			&cli.StringFlag{Name: "name", Usage: "our name for the agent that uses it; of a fleet: NAME-1, NAME-2 ..."},
			&cli.IntFlag{Name: "uses", Value: 1, Usage: "how many agents may use it, once each"},
			&cli.StringFlag{Name: "trust-ttl", Usage: "how long the trust lasts that it gives, as 30d; default: as long as the agent asks"},
		},
		Action: p.invite,
	}
}

func (p *program) invite(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	o := overlay.InviteOptions{Ports: c.String("ports"), For: c.String("for"), Name: c.String("name"), Uses: c.Int("uses")}
	if o.Ports == "" || c.String("ttl") == "" {
		return usagef("an invitation needs --ports and --ttl").WithHint("pilotctl trust invite --ports 80,443 --ttl 1h")
	}
	if err := checkPorts("--ports", o.Ports); err != nil {
		return err
	}
	var err error
	if o.TTL, err = parseDuration(c.String("ttl")); err != nil {
		return err
	}
	if o.TTL > maxInvite {
		return usagef("--ttl %s: an invitation lasts at most 24h", c.String("ttl"))
	}
	if o.Uses < 1 || o.Uses > trust.MaxInviteUses || o.Uses > 1 && o.For != "" {
		return usagef("--uses %d: want 1 to %d, and 1 with --for", o.Uses, trust.MaxInviteUses)
	}
	if text := c.String("trust-ttl"); text != "" {
		if o.Trust, err = parseDuration(text); err != nil {
			return err
		}
	}
	if o.For != "" {
		if _, err := ipam.ParseRef(o.For); err != nil {
			return badInput(err, "--for takes a contact or a fingerprint")
		}
	}
	if o.Name != "" {
		if err := ipam.ValidName(o.Name); err != nil {
			return badInput(err, "a name is like bob or build-7")
		}
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	token, err := client.Invite(c.Context, o)
	if err != nil {
		return err
	}
	made := invitation{Token: token, ID: inviteID(token), Ports: o.Ports, Uses: o.Uses, Expires: p.now().Add(o.TTL).UTC().Truncate(time.Second)}
	if !p.json {
		whom := "one agent"
		if o.Uses > 1 {
			whom = counted(o.Uses, "agent")
		}
		p.tell("good for %s and ports %s, for %s; there: pilotctl join TOKEN, or pilotctl trust accept -", whom, o.Ports, span(o.TTL))
	}
	return p.result(made, func(w io.Writer) { fmt.Fprintln(w, token) })
}

// inviteID is the ID of a token.
func inviteID(token string) string {
	invite, err := trust.ParseInvite(token)
	if err != nil {
		return ""
	}
	return invite.ID()
}
