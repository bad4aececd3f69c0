package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
)

func (p *program) confirmCommand() *cli.Command {
	return &cli.Command{
		Name:  "confirm",
		Usage: "take trust from a restored backup as it is",
		Description: `An agent tells its servers and peers how many changes its trust has seen. If its
state turns out to be older, it was restored from a backup, or another machine
went on with the same identity, and peers that were revoked since may be in it. So all trust
is suspended: nothing passes, and nothing is granted. Look at pilotctl trust list,
revoke who should not be there, and confirm the rest. Needs the govern socket.`,
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			client, err := p.client(c)
			if err != nil {
				return err
			}
			peers, err := client.Confirm(c.Context)
			if err != nil {
				return err
			}
			return p.result(map[string][]overlay.Peer{"peers": peers}, func(w io.Writer) {
				fmt.Fprintln(w, "trust is in force as this state has it")
				if len(peers) > 0 {
					fmt.Fprintln(w)
					p.listText(w, trustList{Peers: peers})
				}
			})
		},
	}
}

// suspensionText says why no trust is in force, in one line.
func (p *program) suspensionText(s *overlay.Suspension) string {
	return fmt.Sprintf("%s was told of %d changes of trust (%s), this state knows %d: it comes from a backup, or the identity runs on two machines",
		s.By, s.Told, p.ago(&s.At), s.Here)
}
