package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// stopPatience is how long a stop may take.
const stopPatience = 20 * time.Second

func (p *program) resetCommand() *cli.Command {
	return &cli.Command{
		Name:  "reset",
		Usage: "forget all peers, have servers forget this agent, and stop it",
		Description: `Ends all trust, requests and publications; peers are told. Home servers forget card,
mail and whereabouts; one that is not reached in ten seconds goes on knowing them, which
is said. Key, address and settings stay: pilotctl up claims the address anew. Without
--yes it only says what it would do. The agent must be up.`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do it"}},
		Action: func(c *cli.Context) error {
			client, _, err := p.asked(c)
			if err != nil {
				return err
			}
			r, err := p.reset(c, client, c.Bool("yes"))
			if err != nil {
				return err
			}
			if r.Servers, err = client.Withdraw(c.Context); err != nil {
				return err
			}
			if _, err := stop(c.Context, client, stopPatience); err != nil {
				return err
			}
			return p.result(r, r.text)
		},
	}
}

// A resetResult counts what is gone.
type resetResult struct {
	Peers     []string `json:"peers"` // by name
	Requests  int      `json:"requests"`
	Published int      `json:"published"`

	Servers []overlay.Withdrawal `json:"servers"`
}

func (r resetResult) text(w io.Writer) {
	fmt.Fprintln(w, "forgotten:", r)
	for _, s := range r.Servers {
		if s.Gone {
			fmt.Fprintf(w, "claim withdrawn: %s\n", s.Server)
			continue
		}
		fmt.Fprintf(w, "claim not withdrawn: %s goes on knowing this agent: %s\n", s.Server, s.Error)
	}
	fmt.Fprintln(w, "the agent is down; pilotctl up claims its address anew")
}

func (r resetResult) String() string {
	peers := counted(len(r.Peers), "peer")
	if n := len(r.Peers); n > 0 {
		shown := r.Peers[:min(n, 5)]
		peers += " (" + strings.Join(shown, ", ")
		if n > len(shown) {
			peers += ", ..."
		}
		peers += ")"
	}
	return peers + ", " + counted(r.Requests, "request") + ", " + counted(r.Published, "published port")
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// reset ends what the daemon knows of others. A call that was cut off is made
// good by the next one.
func (p *program) reset(c *cli.Context, client *api.Client, really bool) (resetResult, error) {
	ctx := c.Context
	peers, err := client.Peers(ctx)
	if err != nil {
		return resetResult{}, err
	}
	in, err := client.Pending(ctx)
	if err != nil {
		return resetResult{}, err
	}
	out, err := client.Outgoing(ctx)
	if err != nil {
		return resetResult{}, err
	}
	served, err := client.Served(ctx)
	if err != nil {
		return resetResult{}, err
	}
	r := resetResult{Peers: []string{}, Servers: []overlay.Withdrawal{}, Requests: len(in) + len(out), Published: len(served)}
	for _, peer := range peers {
		r.Peers = append(r.Peers, who(peer.Name, peer.Address))
	}
	if !really {
		return r, usagef("reset would forget %v", r).WithHint("pilotctl reset --yes does it; nothing brings it back")
	}
	for _, s := range served {
		if err := client.Unserve(ctx, s.Port); err != nil && !isGone(err) {
			return r, err
		}
	}
	for _, peer := range peers {
		if err := client.Revoke(ctx, peer.Fingerprint); err != nil && !isGone(err) {
			return r, err
		}
	}
	for _, request := range in {
		if err := client.Reject(ctx, request.Fingerprint); err != nil && !isGone(err) {
			return r, err
		}
	}
	for _, request := range out {
		if err := client.Revoke(ctx, request.Fingerprint); err != nil && !isGone(err) {
			return r, err
		}
	}
	return r, nil
}

// isGone says that there was nothing any more to end.
func isGone(err error) bool { return api.AsError(err).Code == overlay.CodeNotFound }
