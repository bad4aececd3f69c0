package main

import (
	"fmt"
	"io"
	"strconv"

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
	t.row("PEER", "ULA", "PATH", "ENDPOINT", "RTT", "LOSS", "BUDGET", "RECEIVED", "SENT", "SEEN", "PATH CHANGED")
	for _, peer := range peers {
		seen := p.ago(peer.LastSeen)
		if seen == "" {
			seen = "never"
		}
		path := peer.Path
		if peer.Trust != "active" && peer.Trust != "" {
			path = peer.Trust
		}
		t.row(peer.Name, peer.ULA, path, peer.Endpoint, millis(peer.RTTMillis), lossText(peer), budgetText(peer.Budget),
			bytesText(peer.RxBytes), bytesText(peer.TxBytes), seen, p.changeText(peer))
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

// lossText is empty where there is no path.
func lossText(p overlay.Peer) string {
	if p.Path != "direct" && p.Path != "relay" {
		return ""
	}
	return strconv.FormatFloat(100*p.Loss, 'f', 0, 64) + " %"
}

func budgetText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// changeText says when data last took another path, and how long it stopped.
func (p *program) changeText(peer overlay.Peer) string {
	text := p.ago(peer.Changed)
	if text != "" && peer.GapMillis > 0 {
		text += ", gap " + millis(peer.GapMillis)
	}
	return text
}
