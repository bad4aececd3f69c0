package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) peersCommand() *cli.Command {
	return &cli.Command{
		Name:   "peers",
		Usage:  "list the trusted peers and the paths to them",
		Action: shows(p, (*api.Client).Peers, p.peerTable),
	}
}

func (p *program) peerTable(w io.Writer, peers []overlay.Peer) {
	if len(peers) == 0 {
		fmt.Fprintln(w, "no trusted peers yet: pilotctl trust request CONTACT --reason TEXT, or pilotctl trust invite")
		return
	}
	t := newTable(w)
	t.row("PEER", "ULA", "PATH", "ENDPOINT", "RTT", "RECEIVED", "SENT", "SEEN")
	for _, peer := range peers {
		seen := p.ago(peer.LastSeen)
		if seen == "" {
			seen = "never"
		}
		path := peer.Path
		if peer.Trust != "active" && peer.Trust != "" {
			path = peer.Trust
		}
		t.row(peer.Name, peer.ULA, path, peer.Endpoint, millis(peer.RTTMillis), bytesText(peer.RxBytes), bytesText(peer.TxBytes), seen)
	}
	t.close()
	for _, peer := range peers {
		if peer.WhyNot != "" && peer.Path != "direct" {
			fmt.Fprintf(w, "%s is not reached directly: %s\n", peer.Name, peer.WhyNot)
		}
		if peer.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", peer.Name, peer.Note)
		}
	}
}
