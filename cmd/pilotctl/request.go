package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) requestCommand() *cli.Command {
	return &cli.Command{
		Name:      "request",
		Usage:     "ask another agent for trust",
		ArgsUsage: "CONTACT",
		Description: `CONTACT is what the other agent's "pilotctl id" shows; quote it in a shell. The
reason is read by whoever decides. Without --ports the request asks for 7, 80,
443 and 1001-1003; without --offer it offers echo, port 7, in return. With --wait
it returns when trust is granted; exit status 5 when it was not, in that time.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "reason", Usage: "why, in a sentence (required)"},
			&cli.StringFlag{Name: "as", Usage: "our name for the other agent; default: its own"},
			&cli.StringFlag{Name: "ports", Usage: "what we ask to reach: " + portsUsage},
			&cli.StringFlag{Name: "offer", Usage: "what it may reach here in return: " + portsUsage},
			&cli.StringFlag{Name: "ttl", Usage: "how long trust is to last, as 12h or 30d; default: until revoked"},
			&cli.DurationFlag{Name: "wait", Usage: "wait so long for the answer"},
		},
		Action: p.request,
	}
}

func (p *program) request(c *cli.Context) error {
	args, err := arguments(c, "a contact")
	if err != nil {
		return err
	}
	ref, err := ipam.ParseRef(args[0])
	if err == nil && ref.Kind != ipam.RefContact {
		err = fmt.Errorf("%q is no contact: want ADDRESS#FINGERPRINT@HOST[:PORT]", args[0])
	}
	if err != nil {
		return badInput(err, "pilotctl id shows an agent's contact; quote it in a shell")
	}
	o := overlay.RequestOptions{Contact: args[0], Reason: c.String("reason"), As: c.String("as"),
		Ports: c.String("ports"), Offer: c.String("offer")}
	if o.Reason == "" {
		return usagef("a request needs --reason TEXT").WithHint("say in a sentence why the other agent should trust this one")
	}
	if err := checkAsk(o); err != nil {
		return err
	}
	if text := c.String("ttl"); text != "" {
		if o.TTL, err = parseDuration(text); err != nil {
			return err
		}
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	r, err := client.Request(c.Context, o)
	if err != nil {
		return err
	}
	return p.awaitGrant(c.Context, client, r, c.Duration("wait"))
}

func checkAsk(o overlay.RequestOptions) error {
	if o.As != "" {
		if err := ipam.ValidName(o.As); err != nil {
			return badInput(err, "a name is like bob or build-7")
		}
	}
	if err := checkPorts("--ports", o.Ports); err != nil {
		return err
	}
	return checkPorts("--offer", o.Offer)
}

// awaitGrant shows how far a request or an accepted invitation has come, after
// waiting for the grant if asked to.
func (p *program) awaitGrant(ctx context.Context, client *api.Client, r overlay.TrustResult, wait time.Duration) error {
	them := who(r.Name, r.Address)
	exposed(p.stderr, them, r.Listening)
	if r.State != "granted" && wait > 0 {
		p.tell("the request to %s is on its way; waiting %v for the answer ...", them, wait)
		fingerprint := r.Fingerprint
		var err error
		if r, err = client.Wait(ctx, fingerprint, wait); err != nil {
			if code := api.AsError(err).Code; code == overlay.CodeTrustPending || code == overlay.CodeTimeout {
				return overlay.Errorf(overlay.CodeTrustPending, "%s has not granted trust within %v", them, wait).
					WithHint("the request stays open; pilotctl trust list shows when it is granted").Retry()
			}
			return err
		}
	}
	return p.result(r, func(w io.Writer) {
		if r.State == "granted" {
			granted(w, r)
			return
		}
		fmt.Fprintf(w, "asked %s for trust; it decides\n", them)
		facts(w, "address", r.Address, "ula", r.ULA, "fingerprint", r.Fingerprint, "asked for", portsText(r.Ports))
		fmt.Fprintln(w, "next: pilotctl trust list, until it is granted")
	})
}
