package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
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
		Action: shows(p, confirmTrust, func(w io.Writer, l confirmation) {
			fmt.Fprintln(w, "trust is in force as this state has it")
			if len(l.Peers) > 0 {
				fmt.Fprintln(w)
				p.listText(w, trustList{Peers: l.Peers})
			}
		}),
	}
}

// A confirmation is the trust that is in force again.
type confirmation struct {
	Peers []overlay.Peer `json:"peers"`
}

func confirmTrust(client *api.Client, ctx context.Context) (l confirmation, err error) {
	l.Peers, err = client.Confirm(ctx)
	return l, err
}

// suspensionText says why no trust is in force, in one line.
func (p *program) suspensionText(s *overlay.Suspension) string {
	return fmt.Sprintf("%s was told of %d changes of trust (%s), this state knows %d: it comes from a backup, or the identity runs on two machines",
		s.By, s.Told, p.ago(&s.At), s.Here)
}
