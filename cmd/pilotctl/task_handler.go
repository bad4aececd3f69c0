package main

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/services/tasks"
)

func (p *program) taskHandlerCommand() *cli.Command {
	return &cli.Command{
		Name:  "handler",
		Usage: "say what is done with tasks of peers; without a handler they are rejected",
		Subcommands: []*cli.Command{
			{
				Name: "set", Usage: "have a command or a URL do the work", ArgsUsage: "--exec COMMAND [ARGUMENT...] | --url URL",
				Description: `A command runs once for each task, as the user who sets it, with a clean environment
and what the peer wrote on stdin. Arguments that start with - come after --:
  pilotctl task handler set --exec -- /usr/bin/wc -w
A URL gets a POST with that. PILOT_PEER_NAME, PILOT_PEER_ADDRESS, PILOT_PEER_ULA and
PILOT_PEER_FINGERPRINT, or the headers Pilot-Peer-*, say who asks. What it writes is
the answer. With --format json it reads one object, with the whole message, and
writes one value.`,
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "exec", Usage: "the arguments are a command"},
					&cli.StringFlag{Name: "url", Usage: "an address such as http://127.0.0.1:9000/"},
					&cli.StringFlag{Name: "format", Value: tasks.FormatText, Usage: "what it reads and writes: text or json"},
					&cli.StringFlag{Name: "description", Usage: "what it does, for the agent card"},
					&cli.DurationFlag{Name: "time-limit", Value: 10 * time.Minute, Usage: "of a task"},
					&cli.Int64Flag{Name: "max-output", Value: 1 << 20, Usage: "of a task, in bytes"},
				},
				Action: p.taskHandlerSet,
			},
			{
				Name: "show", Usage: "show the handler",
				Action: p.handlerCall(func(d *taskDesk, c *cli.Context) (*tasks.Handler, error) { return d.tasks.Handler(c.Context) }),
			},
			{
				Name: "clear", Usage: "reject tasks from now on; those at work go on",
				Action: p.handlerCall(func(d *taskDesk, c *cli.Context) (*tasks.Handler, error) {
					return nil, d.tasks.ClearHandler(c.Context)
				}),
			},
		},
	}
}

func (p *program) handlerCall(f func(*taskDesk, *cli.Context) (*tasks.Handler, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := arguments(c); err != nil {
			return err
		}
		d, err := p.taskDesk(c)
		if err != nil {
			return err
		}
		if err := d.ready(c.Context); err != nil {
			return err
		}
		h, err := f(d, c)
		if err != nil {
			return taskError(err, "")
		}
		return p.showHandler(h)
	}
}

func (p *program) taskHandlerSet(c *cli.Context) error {
	h := tasks.Handler{URL: c.String("url"), Format: c.String("format"), Description: c.String("description"), TimeLimit: c.Duration("time-limit"), MaxOutput: c.Int64("max-output")}
	switch args := c.Args().Slice(); {
	case c.Bool("exec") == (h.URL != ""):
		return usagef("%s needs either --exec COMMAND or --url URL", c.Command.HelpName).WithHint("%s --help", c.Command.HelpName)
	case h.URL != "" && len(args) > 0:
		return usagef("%s: one argument too many: %.40q", c.Command.HelpName, args[0])
	case h.URL == "" && len(args) == 0:
		return usagef("--exec needs a command").WithHint("pilotctl task handler set --exec -- /usr/bin/wc -w")
	case h.URL == "":
		path, err := exec.LookPath(args[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return usagef("there is no command %.80q", args[0]).WithHint("give the path of a program; a shell script needs its #! line")
		}
		h.Exec = append([]string{path}, args[1:]...)
	}
	d, err := p.taskDesk(c)
	if err != nil {
		return err
	}
	if err := d.ready(c.Context); err != nil {
		return err
	}
	set, err := d.tasks.SetHandler(c.Context, h)
	if err != nil {
		return taskError(err, "")
	}
	return p.showHandler(set)
}

func (p *program) showHandler(h *tasks.Handler) error {
	return p.result(struct {
		Handler *tasks.Handler `json:"handler"`
	}{h}, func(w io.Writer) {
		if h == nil {
			fmt.Fprintln(w, "no handler: tasks are rejected")
			return
		}
		if h.URL != "" {
			fmt.Fprintf(w, "tasks go to %s\n", h.URL)
		} else {
			fmt.Fprintf(w, "tasks run %s\n", strings.Join(quotedWords(h.Exec), " "))
			facts(w, "as user", fmt.Sprint(h.UID))
		}
		facts(w, "format", h.Format, "time limit", h.TimeLimit.String(), "max output", bytesText(uint64(h.MaxOutput)), "description", h.Description)
	})
}

// quotedWords shows arguments so that one can tell where each ends.
func quotedWords(words []string) []string {
	list := make([]string, len(words))
	for i, w := range words {
		if list[i] = w; w == "" || strings.ContainsAny(w, " \t\n\"'\\$") || harmless(w) != w {
			list[i] = quoted(w)
		}
	}
	return list
}
