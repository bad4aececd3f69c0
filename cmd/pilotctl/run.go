package main

import (
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/cmd/pilotctl/run"
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "run a program in a network of its own that has the overlay; needs no root",
		ArgsUsage: "-- COMMAND [ARGUMENTS]",
		Description: `The agent runs for as long as the program does, and makes itself first if there is
none. The program reaches peers by name and peers reach what it serves; everything
else goes out through the host's network, names too. Its 127.0.0.1 is its own. Ping
works to peers only. Exit status, signals, input and terminal are the program's, and
pilotctl in there is for its agent.

With --ephemeral the program has a new agent of its own, beside any other that is up
here; its servers forget it at the end. With an invitation the home server of the
agent that invites is used, if there is no other.

It starts when a home server knows the agent and the invitation is granted, or after
--wait without. Needs Linux, user namespaces and /dev/net/tun.`,
		Flags: slices.Concat(nodeFlags(), boxFlags(), enrolFlags(), []cli.Flag{
			inviteFlag(),
			&cli.DurationFlag{Name: "wait", Value: 10 * time.Second, Usage: "wait so long before the program starts"},
		}),
		Action: func(c *cli.Context) error {
			argv := c.Args().Slice()
			if len(argv) == 0 {
				return usagef("pilotctl run needs a command").WithHint("for example: pilotctl run -- curl http://bob.pilot.internal:8080/")
			}
			return p.runProgram(c, argv)
		},
	}
}

// boxFlags are the flags of a daemon that mean something in a network of its own.
func boxFlags() []cli.Flag {
	return slices.DeleteFunc(runFlags(), func(f cli.Flag) bool {
		return slices.Contains([]string{"tun", "proxy", "dns", "hosts-file"}, f.Names()[0])
	})
}

// runInsideCommand is the process that keeps the namespaces of run.
func (p *program) runInsideCommand() *cli.Command {
	return &cli.Command{
		Name:   run.Command,
		Usage:  "a part of run, which starts it itself",
		Hidden: true,
		Action: func(c *cli.Context) error { return run.Inside(c.Args().Slice()) },
	}
}
