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

// standingInvite is the token in the environment, that an agent uses by itself; empty if there
// is none. PILOT_INVITE has the token, PILOT_INVITE_FILE names a file with it.
func (p *program) standingInvite() (string, error) {
	token, path := strings.TrimSpace(p.getenv("PILOT_INVITE")), p.getenv("PILOT_INVITE_FILE")
	if path != "" {
		if token != "" {
			return "", usagef("PILOT_INVITE and PILOT_INVITE_FILE exclude each other")
		}
		f, err := os.Open(path)
		if err != nil {
			return "", usagef("PILOT_INVITE_FILE: %v", err)
		}
		defer f.Close()
		if token, err = readToken(f); err != nil {
			return "", err
		}
	}
	if token == "" && path == "" {
		return "", nil
	}
	if _, err := trust.ParseInvite(token); err != nil {
		return "", badInput(err, "PILOT_INVITE takes a whole token, PILOT_INVITE_FILE a file with one; pilotctl trust invite makes it")
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
		err := p.borrowServer(c, token)
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

// useInvite accepts an invitation as soon as that can be done. Whoever knows the agent
// that invites, or has asked it, has used the token before.
func useInvite(ctx context.Context, n api.Agent, token string, logger *slog.Logger) error {
	invite, err := trust.ParseInvite(token)
	if err != nil {
		return nil // was looked at before
	}
	contact, err := ipam.ParseContact(invite.Contact)
	if err != nil {
		logger.Error("the invitation is damaged", "error", err)
		return nil
	}
	who := contact.Fingerprint.String()
	if slices.ContainsFunc(n.Peers(), func(p overlay.Peer) bool { return p.Fingerprint == who }) ||
		slices.ContainsFunc(n.Outgoing(), func(r overlay.Request) bool { return r.Fingerprint == who }) {
		logger.Info("the invitation was used before", "peer", who)
		return nil
	}
	for wait := time.Second; ; wait = min(2*wait, acceptMost) {
		r, err := n.Accept(ctx, token, "", "")
		if err == nil {
			logger.Info("the invitation is used", "peer", r.Name, "fingerprint", r.Fingerprint, "ports", r.Ports)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if !api.AsError(err).Retryable {
			logger.Error("the invitation cannot be used", "error", err, "hint", api.AsError(err).Hint)
			return nil
		}
		logger.Warn("the invitation cannot be used yet", "error", err, "retry", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
