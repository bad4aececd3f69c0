package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// A trustList is all trust, given and asked for.
type trustList struct {
	Peers    []overlay.Peer    `json:"peers"`
	Incoming []overlay.Request `json:"incoming"`
	Outgoing []overlay.Request `json:"outgoing"`
}

func (p *program) listCommand() *cli.Command {
	return &cli.Command{
		Name:   "list",
		Usage:  "list who is trusted, with which ports, and what is asked",
		Action: shows(p, allTrust, p.listText),
	}
}

func allTrust(client *api.Client, ctx context.Context) (l trustList, err error) {
	if l.Peers, err = client.Peers(ctx); err != nil {
		return l, err
	}
	if l.Incoming, err = client.Pending(ctx); err != nil {
		return l, err
	}
	l.Outgoing, err = client.Outgoing(ctx)
	return l, err
}

func (p *program) listText(w io.Writer, l trustList) {
	if len(l.Peers)+len(l.Outgoing)+len(l.Incoming) == 0 {
		fmt.Fprintln(w, "no trust yet: pilotctl trust request CONTACT --reason TEXT, or pilotctl trust invite")
		return
	}
	t := newTable(w)
	t.row("PEER", "TRUST", "MAY REACH HERE", "WE MAY REACH", "EXPIRES", "FINGERPRINT")
	for _, peer := range l.Peers {
		t.row(peer.Name, peer.Trust, portsText(peer.In), portsText(peer.Out), p.until(peer.Expires), peer.Fingerprint)
	}
	for _, r := range l.Outgoing {
		t.row(who(r.Name, r.Address), "asked", portsText(r.Offer), portsText(r.Ports), p.until(r.Expires), r.Fingerprint)
	}
	for _, r := range l.Incoming {
		t.row(who(r.Name, r.Address), "asks us", portsText(r.Ports), portsText(r.Offer), p.until(r.Expires), r.Fingerprint)
	}
	t.close()
	if slices.ContainsFunc(l.Peers, func(p overlay.Peer) bool { return p.Trust == "suspended" }) {
		fmt.Fprintln(w, "suspended: this state is older than what others were told, so who was revoked since may be in it; pilotctl trust confirm")
	}
	if n := len(l.Incoming); n > 0 {
		fmt.Fprintf(w, "waiting for a decision here: %d; pilotctl trust pending\n", n)
	}
}
