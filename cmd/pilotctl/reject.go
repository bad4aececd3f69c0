package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) rejectCommand() *cli.Command {
	return &cli.Command{
		Name:        "reject",
		Usage:       "drop a request; the other side is not told",
		ArgsUsage:   "PEER",
		Description: "It may ask again: block keeps it from that. Needs the govern socket.",
		Action:      p.onPeer((*api.Client).Reject, "the request of %s is dropped"),
	}
}
