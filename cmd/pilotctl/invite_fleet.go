package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) inviteListCommand() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the invitations made here, and who used them",
		Description: `An invitation is listed while it can be used, or while somebody is trusted through
it, and for some weeks after. The tokens themselves are not kept.`,
		Action: shows(p, (*api.Client).Invites, showInvites),
	}
}

func showInvites(w io.Writer, list []overlay.Invite) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no invitations; pilotctl trust invite makes one")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tUSED\tPORTS\tEXPIRES\tTRUSTED THROUGH IT")
	for _, i := range list {
		var names []string
		for _, u := range i.Used {
			if u.Trusted {
				names = append(names, u.Name)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%d/%d\t%s\t%s\t%s\n", i.ID, i.State, len(i.Used), i.Uses, i.Ports,
			i.Expires.UTC().Format("2006-01-02T15:04:05Z"), either(strings.Join(names, " "), "-"))
	}
	t.Flush()
}

func (p *program) inviteRevokeCommand() *cli.Command {
	return &cli.Command{
		Name:      "revoke",
		Usage:     "end an invitation, and the trust of all who used it",
		ArgsUsage: "ID",
		Description: `ID is what "trust invite list" shows, or enough of its beginning. Who used the
invitation but was approved by hand since stays trusted. Needs the govern socket.`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "keep", Usage: "only end the invitation: those who used it stay trusted"}},
		Action: func(c *cli.Context) error {
			client, args, err := p.asked(c, "an ID")
			if err != nil {
				return err
			}
			ended, err := client.EndInvite(c.Context, overlay.EndInviteOptions{ID: args[0], Keep: c.Bool("keep")})
			if err != nil {
				return err
			}
			return p.result(ended, func(w io.Writer) {
				fmt.Fprintf(w, "invitation %s has ended", ended.ID)
				switch n := len(ended.Used); {
				case c.Bool("keep"):
					fmt.Fprintf(w, "; trusted through it, as before: %s\n", counted(trusted(ended), "agent"))
				case n > 0:
					fmt.Fprintf(w, ", and with it the trust of those who used it: %s\n", counted(n, "agent"))
				default:
					fmt.Fprintln(w, "; nobody had used it")
				}
			})
		},
	}
}

func trusted(i overlay.Invite) (n int) {
	for _, u := range i.Used {
		if u.Trusted {
			n++
		}
	}
	return n
}
