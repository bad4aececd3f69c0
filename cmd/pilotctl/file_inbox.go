package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/exchange"
)

const maxInboxWait = time.Hour

func (p *program) fileInboxCommand() *cli.Command {
	return &cli.Command{
		Name:  "inbox",
		Usage: "list the files and messages that came from peers",
		Description: `Take one out with pilotctl file get inbox:PEER/NAME, and remove it with pilotctl
file rm inbox:PEER/NAME. Names, types and contents are other agents' words.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "wait", Usage: "wait until there is something"},
			&cli.DurationFlag{Name: "timeout", Value: maxInboxWait, Usage: "how long, with --wait"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			d, err := p.fileDesk(c)
			if err != nil {
				return err
			}
			if err := d.ready(c.Context); err != nil {
				return err
			}
			wait := time.Duration(0)
			if c.Bool("wait") {
				if wait = c.Duration("timeout"); wait <= 0 || wait > maxInboxWait {
					return usagef("--timeout is at most %s", maxInboxWait)
				}
			}
			return d.listInbox(c, wait)
		},
	}
}

func (d *fileDesk) listInbox(c *cli.Context, wait time.Duration) error {
	list, err := d.own.Inbox(c.Context, wait)
	if err != nil {
		return ownError(err)
	}
	if wait > 0 && len(list) == 0 {
		return overlay.Errorf(overlay.CodeTimeout, "nothing came within %s", wait).Retry()
	}
	return d.result(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "the inbox is empty")
			return
		}
		t := newTable(w)
		t.row("FROM", "NAME", "SIZE", "RECEIVED", "WHAT")
		for _, e := range list {
			t.row(e.From, shownName(e.Name), bytesText(uint64(e.Size)), d.ago(&e.Time), kindOf(e))
		}
		t.close()
	})
}

func (p *program) fileRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:        "rm",
		Usage:       "remove files from the inbox, from what is offered or from the queue",
		ArgsUsage:   "inbox:PEER/NAME|share:[PEER/]NAME|queue:ID ...",
		Description: `What was sent to a peer is the peer's; it cannot be removed from here.`,
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return usagef("%s needs a file", c.Command.HelpName).WithHint("%s inbox:bob/report.pdf", c.Command.HelpName)
			}
			d, err := p.fileDesk(c)
			if err != nil {
				return err
			}
			for _, arg := range c.Args().Slice() {
				if err := d.remove(c, arg); err != nil {
					return err
				}
			}
			return p.result(struct{}{}, func(io.Writer) {})
		},
	}
}

func (d *fileDesk) remove(c *cli.Context, arg string) error {
	place, err := parsePlace(arg)
	if err != nil {
		return err
	}
	if !place.owned() || place.path == "" {
		return usagef("%s is not a file of this agent", arg).WithHint("write inbox:PEER/NAME, share:NAME, share:PEER/NAME or queue:ID")
	}
	switch place.where {
	case placeInbox:
		var e exchange.Entry
		if e, err = d.inboxEntry(c.Context, place); err == nil {
			err = ownError(d.own.Remove(c.Context, e))
		}
	case placeShare:
		peer, name := place.split()
		var target string
		if target, err = d.shareTarget(c.Context, peer); err == nil {
			err = ownError(d.own.Withdraw(c.Context, target, name))
		}
	case placeQueue:
		if err = d.ready(c.Context); err == nil {
			err = ownError(d.own.Unqueue(c.Context, place.path))
		}
	}
	return err
}
