package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) revokeCommand() *cli.Command {
	return &cli.Command{
		Name:        "revoke",
		Usage:       "end the trust with a peer, both ways, at once",
		ArgsUsage:   "PEER",
		Description: "Flows under way stop with the next packet. Trust begins again with a new request.",
		Action:      p.onPeer((*api.Client).Revoke, "trust with %s is ended"),
	}
}
