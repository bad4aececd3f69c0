package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) blockCommand() *cli.Command {
	return &cli.Command{
		Name:        "block",
		Usage:       "end the trust with a peer and hear no request of it again",
		ArgsUsage:   "PEER",
		Description: "Works on a waiting request too. Needs the govern socket.",
		Action:      p.onPeer((*api.Client).Block, "%s is blocked"),
	}
}
