package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/cmd/pilotctl/demo"
	"github.com/pilotnet/pilot/overlay"
)

func (p *program) demoCommand() *cli.Command {
	return &cli.Command{
		Name:      "demo",
		Usage:     "show the whole story on this machine, in namespaces that end with it",
		UsageText: "pilotctl demo [--keep]\n       pilotctl demo COMMAND [ARGUMENTS]",
		Description: `A server, alice and bob behind a NAT router each, and a stranger: trust, curl by
name, a direct path, silence, revocation. Nothing of this machine is changed. It
needs Linux, and root or the right to make user namespaces.`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "keep", Usage: "leave it up, for pilotctl demo enter HOST"}},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			return p.demo(c)
		},
		Subcommands: []*cli.Command{
			p.demoEnterCommand(), p.demoDownCommand(), p.demoKnockCommand(), p.demoGetCommand(),
			p.demoProcess("stage", func(c *cli.Context, dir string, o demo.Options) (int, error) { return demo.Stage(dir, o) }),
			p.demoProcess("story", func(c *cli.Context, dir string, o demo.Options) (int, error) {
				return 0, demo.Play(c.Context, dir, o)
			}),
		},
	}
}

// demo shows the story. With --json the transcript is progress, on stderr.
func (p *program) demo(c *cli.Context) error {
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop() // SIGPIPE: the reader of the transcript is gone
	o := demo.Options{Out: p.stdout, Color: p.terminal() && p.getenv("NO_COLOR") == "", Keep: c.Bool("keep")}
	if p.json {
		o.Out, o.Color = p.stderr, false
	}
	r, err := demo.Run(ctx, o)
	if ctx.Err() != nil && c.Context.Err() == nil {
		return &statusError{status: exitInterrupted, err: overlay.Errorf(overlay.CodeInternal, "terminated")}
	}
	if err != nil {
		return err
	}
	return p.result(r, func(io.Writer) {})
}

func (p *program) demoEnterCommand() *cli.Command {
	return &cli.Command{
		Name:        "enter",
		Usage:       "open a shell, or run a command, on a host of a demo that is up",
		ArgsUsage:   "HOST [-- COMMAND...]",
		Description: `HOST is alice, bob, mallory or server. The exit status is the command's.`,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) == 0 {
				return usagef("pilotctl demo enter needs a host: alice, bob, mallory or server")
			}
			status, err := demo.Enter(c.Context, args[0], args[1:], demo.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
			if err != nil {
				return err
			}
			if status != 0 {
				os.Exit(status) // nothing is wrong here that would want words
			}
			return nil
		},
	}
}

func (p *program) demoDownCommand() *cli.Command {
	return &cli.Command{
		Name:  "down",
		Usage: "remove demos that were kept",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			n, err := demo.Down(c.Context)
			if err != nil {
				return err
			}
			return p.result(map[string]int{"removed": n}, func(w io.Writer) {
				if n == 0 {
					fmt.Fprintln(w, "no demo was up")
				} else {
					fmt.Fprintln(w, "the demo is down")
				}
			})
		},
	}
}

func (p *program) demoKnockCommand() *cli.Command {
	return &cli.Command{
		Name:      "knock",
		Usage:     "send datagrams to a UDP socket as a stranger, and count what comes back",
		ArgsUsage: "IP:PORT",
		Hidden:    true,
		Flags:     []cli.Flag{&cli.IntFlag{Name: "count", Value: 1000, Usage: "how many"}},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a socket IP:PORT")
			if err != nil {
				return err
			}
			k, err := demo.Knock(c.Context, args[0], c.Int("count"))
			if err != nil {
				return err
			}
			return p.result(k, func(w io.Writer) {
				fmt.Fprintf(w, "%d datagrams sent, %d bytes came back\n", k.Sent, k.Received)
			})
		},
	}
}

func (p *program) demoGetCommand() *cli.Command {
	return &cli.Command{
		Name:      "get",
		Usage:     "fetch a page, where there is no curl",
		ArgsUsage: "URL",
		Hidden:    true,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a URL")
			if err != nil {
				return err
			}
			var page strings.Builder
			if err := demo.Get(c.Context, args[0], &page); err != nil {
				return err
			}
			return p.result(page.String(), func(w io.Writer) { io.WriteString(w, page.String()) })
		},
	}
}

// demoProcess is one of the processes that the demo starts for itself.
func (p *program) demoProcess(name string, run func(*cli.Context, string, demo.Options) (int, error)) *cli.Command {
	return &cli.Command{
		Name:   name,
		Usage:  "a part of the demo, which starts it itself",
		Hidden: true,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "keep"}, &cli.BoolFlag{Name: "color"}},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a directory")
			if err != nil {
				return err
			}
			status, err := run(c, args[0], demo.Options{Out: p.stdout, Color: c.Bool("color"), Keep: c.Bool("keep")})
			if err != nil {
				return err
			}
			if status != 0 {
				os.Exit(status) // nothing is wrong here that would want words
			}
			return nil
		},
	}
}
