package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/events"
)

func (p *program) eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show who may subscribe to what at this agent, and who does",
		Description: `Peers whose grant has port 1002 may subscribe to public/# at first. PEER is a
peer, or all for every one of them. What is forbidden stops at once.`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "allow", Usage: "PEER=FILTER: let the peer subscribe to it; repeatable"},
			&cli.StringSliceFlag{Name: "forbid", Usage: "PEER=FILTER: take that back; repeatable"},
		},
		Action: p.events,
	}
}

func (p *program) events(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	d, err := p.fileDesk(c)
	if err != nil {
		return err
	}
	var changes []events.Change
	for _, list := range []struct {
		words []string
		allow bool
	}{{c.StringSlice("forbid"), false}, {c.StringSlice("allow"), true}} {
		for _, word := range list.words {
			change, err := d.accessChange(c, word)
			if err != nil {
				return err
			}
			change.Allow = list.allow
			changes = append(changes, change)
		}
	}
	if err := d.ready(c.Context); err != nil {
		return err
	}
	at, err := p.places(c)
	if err != nil {
		return err
	}
	own := events.NewOwnerClient(at.socket)
	var state events.State
	if len(changes) > 0 {
		state, err = own.Allow(c.Context, changes)
	} else {
		state, err = own.State(c.Context)
	}
	if err != nil {
		return ownEventsError(err)
	}
	return p.result(state, func(w io.Writer) { p.eventsText(w, state) })
}

// accessChange reads PEER=FILTER.
func (d *fileDesk) accessChange(c *cli.Context, word string) (events.Change, error) {
	who, filter, ok := strings.Cut(word, "=")
	if !ok {
		return events.Change{}, usagef("%.60q: want PEER=FILTER", word).WithHint("for example bob=build/#, or all=news/#; quote it in a shell")
	}
	if err := badTopic(events.CheckFilter(filter)); err != nil {
		return events.Change{}, err
	}
	if who == events.Everybody {
		return events.Change{Peer: who, Filter: filter}, nil
	}
	peer, err := d.peer(c.Context, who)
	return events.Change{Peer: peer.Fingerprint, Filter: filter}, err
}

func ownEventsError(err error) error {
	r := new(events.Refusal)
	switch {
	case !errors.As(err, &r):
		return err
	case r.Status == 404:
		return overlay.Errorf(overlay.CodeNotFound, "the events of this agent are switched off").
			WithHint("start the agent with the service events: pilotctl up --services all")
	case r.Status == 400:
		return usagef("%s", r.Reason)
	}
	return overlay.Errorf(overlay.CodeInternal, "%s", r.Reason)
}

func (p *program) eventsText(w io.Writer, s events.State) {
	t := newTable(w)
	t.row("PEER", "MAY SUBSCRIBE TO")
	for _, a := range s.Access {
		t.row(a.Peer, strings.Join(a.Filters, ", "))
	}
	t.close()
	fmt.Fprintf(w, "%d events wait for subscribers (%s), %d are retained\n", s.Stored, bytesText(uint64(s.Bytes)), s.Retained)
	if len(s.Sessions) == 0 {
		fmt.Fprintln(w, "nobody subscribes")
		return
	}
	t = newTable(w)
	t.row("SUBSCRIBER", "CLIENT", "STATE", "WAITING", "SIZE", "DROPPED", "FILTERS")
	for _, v := range s.Sessions {
		state := "connected"
		if !v.Connected {
			state = "away for " + strings.TrimSuffix(p.ago(v.Since), " ago")
		}
		t.row(v.Peer, wordsOf([]byte(v.Client)), state, strconv.Itoa(v.Waiting), bytesText(uint64(v.Bytes)), strconv.FormatUint(v.Dropped, 10), strings.Join(v.Filters, ", "))
	}
	t.close()
}
