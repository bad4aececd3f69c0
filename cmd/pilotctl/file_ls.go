package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay/services/exchange"
)

func (p *program) fileListCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the files that a peer offers, or those of this agent",
		ArgsUsage: "PEER|inbox|share|queue",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a peer, inbox, share or queue")
			if err != nil {
				return err
			}
			d, err := p.fileDesk(c)
			if err != nil {
				return err
			}
			place := filePlace{where: args[0]}
			if at, err := parsePlace(args[0]); err == nil && at.path == "" {
				place = at
			}
			if !place.owned() {
				return d.listOffered(c, place.where)
			}
			if err := d.ready(c.Context); err != nil {
				return err
			}
			switch place.where {
			case placeInbox:
				return d.listInbox(c, 0)
			case placeQueue:
				return d.listQueue(c)
			}
			return d.listShared(c)
		},
	}
}

func (d *fileDesk) listOffered(c *cli.Context, name string) error {
	peer, err := d.peer(c.Context, name)
	if err != nil {
		return err
	}
	client, err := d.exchange(peer)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Offered(c.Context)
	if err != nil {
		return fileError(err)
	}
	return d.result(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintf(w, "%s offers no files\n", peer.Name)
			return
		}
		t := newTable(w)
		t.row("NAME", "SIZE", "CHANGED")
		for _, e := range list {
			t.row(shownName(e.Name), bytesText(uint64(e.Size)), d.ago(&e.Time))
		}
		t.close()
	})
}

func (d *fileDesk) listShared(c *cli.Context) error {
	list, err := d.own.Shared(c.Context)
	if err != nil {
		return ownError(err)
	}
	return d.result(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "nothing is offered; pilotctl file cp FILE share: offers a file to all peers")
			return
		}
		t := newTable(w)
		t.row("NAME", "SIZE", "TO", "CHANGED")
		for _, e := range list {
			t.row(shownName(e.Name), bytesText(uint64(e.Size)), e.To, d.ago(&e.Time))
		}
		t.close()
	})
}

func (d *fileDesk) listQueue(c *cli.Context) error {
	list, err := d.own.Queue(c.Context)
	if err != nil {
		return ownError(err)
	}
	return d.result(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "nothing waits")
			return
		}
		t := newTable(w)
		t.row("ID", "PEER", "NAME", "SIZE", "QUEUED", "STATE")
		for _, it := range list {
			state := "waits"
			if it.Failed != "" {
				state = "refused: " + quoted(it.Failed)
			}
			t.row(it.ID, it.Peer, shownName(it.Name), bytesText(uint64(it.Size)), d.ago(&it.Queued), state)
		}
		t.close()
	})
}

// kindOf is what the inbox shows of an entry.
func kindOf(e exchange.Entry) string {
	if e.Type == "" {
		return e.Kind
	}
	return e.Kind + " " + plainType(e.Type)
}

// plainType shows a media type, which is another agent's word.
func plainType(s string) string {
	for _, r := range s {
		if r <= ' ' && r != ' ' || r > '~' {
			return quoted(s)
		}
	}
	return s
}
