package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/trust"
)

// enrolFlags are the flags for agents that nobody sits at.
func enrolFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "ephemeral", Usage: "be a new agent with all its state in memory, that its servers forget when it ends (PILOT_EPHEMERAL=1)"},
		&cli.StringFlag{Name: "health", Usage: "answer /healthz and /readyz at [IP:]PORT, on loopback unless an IP is given (PILOT_HEALTH)"},
		&cli.BoolFlag{Name: "no-invite", Hidden: true}, // join uses it itself
	}
}

// inviteFlag is for agents in the foreground; for the others there is join.
func inviteFlag() cli.Flag {
	return &cli.StringFlag{Name: "invite", Usage: "use this invitation: TOKEN or file:PATH (PILOT_INVITE, PILOT_INVITE_FILE)"}
}

// enrolArguments hands them on to a daemon in the background.
func (p *program) enrolArguments(c *cli.Context) []string {
	var args []string
	if p.ephemeral(c) {
		args = append(args, "--ephemeral")
	}
	if text := c.String("health"); text != "" {
		args = append(args, "--health", text)
	}
	if c.Bool("no-invite") {
		args = append(args, "--no-invite")
	}
	return args
}

// standingInvite is the token that an agent uses by itself, empty if there is none:
// from --invite, else from the environment, where PILOT_INVITE has the token and
// PILOT_INVITE_FILE names a file with it.
func (p *program) standingInvite(c *cli.Context) (string, error) {
	from, token, path := "--invite", c.String("invite"), ""
	if token == "" {
		from, token, path = "PILOT_INVITE", strings.TrimSpace(p.getenv("PILOT_INVITE")), p.getenv("PILOT_INVITE_FILE")
	}
	switch file, isFile := strings.CutPrefix(token, "file:"); {
	case token != "" && path != "":
		return "", usagef("PILOT_INVITE and PILOT_INVITE_FILE exclude each other")
	case isFile:
		path = file
	case path != "":
		from = "PILOT_INVITE_FILE"
	case token == "":
		return "", nil
	}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return "", usagef("%s: %v", from, err).WithHint("name a file that holds one invitation, as pilotctl trust invite prints it")
		}
		defer f.Close()
		if token, err = readToken(f); err != nil {
			return "", err
		}
	}
	if _, err := trust.ParseInvite(token); err != nil {
		return "", badInput(err, "--invite and PILOT_INVITE take a whole token, PILOT_INVITE_FILE a file with one; pilotctl trust invite makes it")
	}
	return token, nil
}

// borrowPatience is how long a daemon waits for the network, to learn of the server
// of whom invites it.
const (
	borrowPatience = 20 * time.Second
	borrowPause    = time.Second
)

// prepareInvite sees to it that an agent with a token has a home server, and
// keeps that.
func (p *program) prepareInvite(c *cli.Context, at places, token string) error {
	if token == "" {
		return nil
	}
	had := len(c.StringSlice("server"))
	for end := time.Now().Add(borrowPatience); ; {
		err := p.borrowServer(c, at, token)
		if err == nil {
			break
		}
		if !api.AsError(err).Retryable || time.Now().After(end) {
			return err
		}
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(borrowPause):
		}
	}
	if len(c.StringSlice("server")) == had {
		return nil
	}
	_, err := saveConfig(at.config, rawSettings{Servers: c.StringSlice("server")})
	if err != nil && errors.Is(err, fs.ErrPermission) {
		p.tell("note: the home server is not kept in %s: %v", at.config, err)
		return nil
	}
	return err
}

const acceptMost = time.Minute // between two tries

// useInvite accepts an invitation as soon as that can be done, and returns the
// fingerprint of the agent that invites. Whoever knows that agent, or has asked it, has
// used the token before. An error is one that no further try mends, or that of ctx.
func useInvite(ctx context.Context, n api.Agent, token string, logger *slog.Logger) (string, error) {
	invite, err := trust.ParseInvite(token)
	if err != nil {
		return "", err
	}
	contact, err := ipam.ParseContact(invite.Contact)
	if err != nil {
		return "", badInput(err, "the token is damaged; ask for a new one")
	}
	who := contact.Fingerprint.String()
	if slices.ContainsFunc(n.Peers(), func(p overlay.Peer) bool { return p.Fingerprint == who }) ||
		slices.ContainsFunc(n.Outgoing(), func(r overlay.Request) bool { return r.Fingerprint == who }) {
		logger.Info("the invitation was used before", "peer", who)
		return who, nil
	}
	for wait := time.Second; ; wait = min(2*wait, acceptMost) {
		r, err := n.Accept(ctx, token, "", "")
		if err == nil {
			logger.Info("the invitation is used", "peer", r.Name, "fingerprint", r.Fingerprint, "ports", r.Ports)
			return who, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if !api.AsError(err).Retryable {
			logger.Error("the invitation cannot be used", "error", err, "hint", api.AsError(err).Hint)
			return "", err
		}
		logger.Warn("the invitation cannot be used yet", "error", err, "retry", wait)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(wait):
		}
	}
}
