package main

import (
	"bufio"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

const (
	maxToken = 8 << 10

	// acceptWait is long for an agent that runs: it grants within a round trip.
	acceptWait = 15 * time.Second
)

func (p *program) acceptCommand() *cli.Command {
	return &cli.Command{
		Name:      "accept",
		Usage:     "use an invitation",
		ArgsUsage: "TOKEN|-|file:PATH",
		Description: `"-" reads the token from standard input and file:PATH from a file, so that other
users of this machine do not see it in the list of processes. The agent that
invites grants within a moment if it runs; exit status 5 when it has not, in the
time that --wait gives. The token is used up then, too: it grants when it is back.`,
		Flags: acceptFlags(),
		Action: func(c *cli.Context) error {
			token, err := p.tokenArgument(c)
			if err != nil {
				return err
			}
			return p.accept(c, token)
		},
	}
}

func acceptFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "as", Usage: "our name for the agent that invites; default: its own"},
		&cli.StringFlag{Name: "offer", Usage: "ports of ours that it may reach in return"},
		&cli.DurationFlag{Name: "wait", Value: acceptWait, Usage: "wait so long for the grant; 0: do not wait"},
	}
}

// accept hands the token to the daemon.
func (p *program) accept(c *cli.Context, token string) error {
	if err := checkAsk(overlay.RequestOptions{As: c.String("as"), Offer: c.String("offer")}); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	r, err := client.Accept(c.Context, token, c.String("as"), c.String("offer"))
	if err != nil {
		return err
	}
	err = p.awaitGrant(c.Context, client, r, c.Duration("wait"))
	if err != nil && api.AsError(err).Code == overlay.CodeTrustPending {
		return api.AsError(err).WithHint("a token works once: if another agent used it before, ask for a new one; " +
			"if the agent that invites is offline, it grants when it is back")
	}
	return err
}

// tokenArgument reads the token from where the argument says.
func (p *program) tokenArgument(c *cli.Context) (string, error) {
	args, err := arguments(c, "a token")
	if err != nil {
		return "", err
	}
	token := args[0]
	path, fromFile := strings.CutPrefix(token, "file:")
	switch {
	case token == "-":
		token, err = readToken(p.stdin)
	case fromFile:
		f, openErr := os.Open(path)
		if openErr != nil {
			return "", usagef("read the token: %v", openErr)
		}
		defer f.Close()
		token, err = readToken(f)
	default:
		p.tell("note: other users of this machine can see the token in the list of processes; - or file:PATH keeps it private")
	}
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(token, "pilot-invite") {
		if _, err := ipam.ParseContact(token); err == nil {
			return "", usagef("this is a contact, not an invitation").WithHint("pilotctl trust request CONTACT --reason TEXT")
		}
		return "", usagef("this is no invitation: one begins with pilot-invite").WithHint("pilotctl trust invite makes one, on the other agent")
	}
	return token, nil
}

func readToken(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxToken)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", usagef("read the token: %v", err)
	}
	return strings.TrimSpace(line), nil
}
