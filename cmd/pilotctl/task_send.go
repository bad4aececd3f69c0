package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/tasks"
)

const (
	maxTaskText = 1<<20 - 4<<10 // what fits the peer's limit beside the message around it
	taskTime    = 15 * time.Minute
)

func (p *program) taskSendCommand() *cli.Command {
	return &cli.Command{
		Name:      "send",
		Usage:     "send a task to a peer and wait for what comes of it",
		ArgsUsage: "PEER TEXT|-",
		Description: `With - the text comes from stdin. The answer is printed while it comes. The task goes
on at the peer when this command ends earlier; task get shows it then.
Exit status 8: the peer rejected it; 9: it failed or was canceled; 6: no end in time.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-wait", Usage: "print the ID of the task and do not wait"},
			&cli.DurationFlag{Name: "timeout", Value: taskTime, Usage: "how long to wait"},
			&cli.StringFlag{Name: "context", Usage: "continue this context, of an earlier task"},
			taskPort(),
		},
		Action: p.taskSend,
	}
}

func (p *program) taskSend(c *cli.Context) error {
	args, err := arguments(c, "a peer", "a text, or - for stdin")
	if err != nil {
		return err
	}
	text := args[1]
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(p.stdin, maxTaskText+1))
		if err != nil {
			return overlay.Errorf(overlay.CodeInternal, "read stdin: %v", err)
		}
		text = string(b)
	}
	switch {
	case strings.TrimSpace(text) == "":
		return usagef("the task has no text")
	case len(text) > maxTaskText:
		return usagef("the text is longer than %d bytes", maxTaskText).WithHint("send it as a file: pilotctl file cp FILE %s:", args[0])
	case c.Duration("timeout") <= 0:
		return usagef("--timeout is a length of time such as 10m")
	}
	d, err := p.taskDesk(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	client, peer, err := d.at(ctx, args[0], c.Uint("port"))
	if err != nil {
		return err
	}
	defer client.Close()
	f := p.taskFollower(peer.Name)
	e, err := client.Send(ctx, tasks.Sending{Text: text, Context: c.String("context"), NoWait: c.Bool("no-wait"), Progress: f.progress})
	if err != nil {
		return p.taskLeft(c, taskError(err, peer.Name), peer.Name, e)
	}
	if c.Bool("no-wait") && !e.Ended {
		return p.result(e, func(w io.Writer) { fmt.Fprintln(w, harmless(e.ID)) })
	}
	return f.finish(e)
}

// taskLeft tells how to go on with a task that is still at work.
func (p *program) taskLeft(c *cli.Context, err error, peer string, e tasks.Entry) error {
	o := new(overlay.Error)
	if e.ID == "" || !errors.As(err, &o) {
		return err
	}
	if c.Context.Err() != nil { // interrupted: no hint is shown
		p.tell("the task goes on: pilotctl task watch %s %s", peer, harmless(e.ID))
	}
	return o.WithHint("the task goes on: pilotctl task watch %s %s", peer, harmless(e.ID))
}

func (p *program) taskWatchCommand() *cli.Command {
	return &cli.Command{
		Name: "watch", Usage: "follow a task to its end", ArgsUsage: "[PEER] ID",
		Description: `Exit status as of task send.`,
		Flags:       []cli.Flag{&cli.DurationFlag{Name: "timeout", Value: taskTime, Usage: "how long to wait"}, taskPort()},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			f := p.taskFollower("")
			_, e, err := p.atTask(c,
				func(d *taskDesk, id string) (tasks.Entry, error) {
					seen := ""
					return d.tasks.Watch(ctx, id, func(e tasks.Entry) {
						rest, _ := strings.CutPrefix(e.Text, seen)
						seen = e.Text
						f.progress(e, rest)
					})
				},
				func(t *tasks.Client, id string) (tasks.Entry, error) { return t.Watch(ctx, id, f.progress) })
			if err != nil {
				return err
			}
			return f.finish(e)
		},
	}
}

// A taskFollower prints what comes of a task while it comes.
type taskFollower struct {
	*program
	peer    string
	state   string
	printed int // bytes of text
	ends    bool
}

func (p *program) taskFollower(peer string) *taskFollower {
	return &taskFollower{program: p, peer: peer, ends: true}
}

func (f *taskFollower) progress(e tasks.Entry, text string) {
	if e.State != f.state && !f.json && !e.Ended {
		f.tell("%s  %s", harmless(e.ID), e.State)
	}
	f.state = e.State
	if text == "" || f.json {
		return
	}
	f.printed += len(text)
	out := harmless(text)
	fmt.Fprint(f.stdout, out)
	f.ends = strings.HasSuffix(out, "\n")
}

func (f *taskFollower) finish(e tasks.Entry) error {
	bad := endedBadly(e)
	if f.json {
		if err := f.result(e, nil); err != nil || bad == nil {
			return err
		}
		return &statusError{status: bad.status} // the state is in the data
	}
	if f.printed == 0 {
		if out := harmless(answerText(e)); out != "" {
			fmt.Fprint(f.stdout, out)
			f.ends = strings.HasSuffix(out, "\n")
		}
	} else {
		fmt.Fprint(f.stdout, dataText(e))
	}
	if !f.ends {
		fmt.Fprintln(f.stdout)
	}
	if e.State == "input-required" || e.State == "auth-required" {
		f.tell("the peer waits for more: %s", quoted(e.Reason))
	}
	if bad != nil {
		return bad
	}
	return nil
}

// answerText is what a task answered, values as JSON, one a line.
func answerText(e tasks.Entry) string { return e.Text + dataText(e) }

func dataText(e tasks.Entry) string {
	var b strings.Builder
	for _, v := range e.Data {
		if text, err := json.Marshal(v); err == nil {
			fmt.Fprintf(&b, "%s\n", text)
		}
	}
	return b.String()
}
