package main

import (
	"context"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/trust"
)

func (p *program) joinCommand() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "use an invitation: init, up and trust accept in one",
		ArgsUsage: "TOKEN|-|file:PATH",
		Description: `The token is all that a fresh machine needs: a new agent without --server makes the
inviting agent's home server its own. Without an argument the token is taken from
PILOT_INVITE or the file that PILOT_INVITE_FILE names.`,
		Flags: joinFlags(),
		Action: func(c *cli.Context) error {
			token, err := p.joinToken(c)
			if err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			if err := p.borrowServer(c, at, token); err != nil {
				return err
			}
			if err := c.Set("no-invite", "true"); err != nil {
				return err
			}
			r, err := p.up(c)
			if err != nil {
				return err
			}
			p.tell("%s is up, %s", r.Name, r.Address)
			return p.accept(c, token)
		},
	}
}

// joinToken is the token of the command line, or else that of the environment.
func (p *program) joinToken(c *cli.Context) (string, error) {
	if c.NArg() == 0 {
		if token, err := p.standingInvite(c); token != "" || err != nil {
			return token, err
		}
	}
	return p.tokenArgument(c)
}

// joinFlags are those of up and of accept, which share --wait.
func joinFlags() []cli.Flag {
	flags := upFlags()
	for _, f := range acceptFlags() {
		if !slices.ContainsFunc(flags, func(have cli.Flag) bool { return have.Names()[0] == f.Names()[0] }) {
			flags = append(flags, f)
		}
	}
	return flags
}

const cardTimeout = 15 * time.Second

// borrowServer sets --server to the home server of the agent that invites, if
// this one does not run and has none. The key of the server is in the card of the
// inviting agent, which its fingerprint in the token proves.
func (p *program) borrowServer(c *cli.Context, at places, token string) error {
	if _, err := api.NewClient(at.socket).ID(c.Context); err == nil {
		return nil
	}
	set, err := p.settings(c, at)
	if err != nil || len(set.servers) > 0 {
		return err
	}
	invite, err := trust.ParseInvite(token)
	if err != nil {
		return badInput(err, "copy the whole token; pilotctl trust invite makes a new one")
	}
	if err := invite.Check(p.now()); err != nil {
		return overlay.Errorf(overlay.CodeNotTrusted, "the invitation has expired").WithHint("ask for a new one")
	}
	contact, err := ipam.ParseContact(invite.Contact)
	if err != nil {
		return badInput(err, "the token is damaged; ask for a new one")
	}
	server, err := p.homeOf(c.Context, contact, either(c.String("ca-file"), p.getenv("PILOT_CA_FILE")))
	if err != nil {
		return err
	}
	p.tell("using the home server of the agent that invites: %s", server.HostPort())
	return c.Set("server", server.String())
}

// homeOf fetches the card of an agent and returns the server it was found at. caFile is as for proxies.
func (p *program) homeOf(ctx context.Context, contact ipam.Contact, caFile string) (crypto.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, cardTimeout)
	defer cancel()
	home := crypto.Server{Host: contact.Host, Port: contact.Port}
	proxies, err := p.proxies(caFile)
	if err != nil {
		return crypto.Server{}, err
	}
	proxy, err := relay.ProxyFor(proxies.Find, home)
	if err != nil {
		p.tell("%v", err)
	}
	data, err := relay.FetchCard(ctx, relay.DialConfig{
		Server: home, Routes: relay.Routes(home, proxy), CA: proxies.CA, Now: p.now, Logger: p.logger(false),
	}, contact.Fingerprint)
	if err != nil {
		return crypto.Server{}, overlay.Errorf(overlay.CodeTimeout, "fetch the card of the agent that invites: %v", err).
			WithHint("is %s reachable from here? or name a home server with --server", contact.HostPort()).Retry()
	}
	card, err := crypto.ParseCard(data)
	if err != nil || card.Key.Fingerprint() != contact.Fingerprint {
		return crypto.Server{}, overlay.Errorf(overlay.CodeInternal, "%s gave a card that is not of the agent that invites", contact.HostPort())
	}
	for _, s := range card.Servers {
		if s.Host == contact.Host && s.Port == contact.Port {
			return s, nil
		}
	}
	return crypto.Server{}, overlay.Errorf(overlay.CodeNotFound, "the agent that invites has no home server at %s any more", contact.HostPort()).
		WithHint("name one with --server")
}
