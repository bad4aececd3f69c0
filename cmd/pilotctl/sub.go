package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services/events"
)

const defaultKeep = 7 * 24 * time.Hour

func (p *program) subCommand() *cli.Command {
	return &cli.Command{
		Name:      "sub",
		Usage:     "print events as they come, from here or from a peer",
		ArgsUsage: "[PEER:]FILTER...",
		Description: `A filter is a topic in which + stands for one level and a last # for all others;
quote it in a shell. At a peer one may subscribe to what that peer allows, at
first to public/#. Without a peer the events are those published at this agent.
The command goes on when the connection or a daemon ended. With --session the
broker also keeps what comes while nobody listens, and it comes with the next
call: nothing is lost, and an event may come twice.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "session", Usage: "name under which the broker keeps events while this command does not run"},
			&cli.StringFlag{Name: "keep", Value: "7d", Usage: "how long it does that, as 12h or 7d; the most is 7d"},
			&cli.BoolFlag{Name: "forget", Usage: "end the session, and what waits in it"},
			&cli.IntFlag{Name: "qos", Value: 1, Usage: "1: every event; 0: what gets through"},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "end after that many events"},
			&cli.DurationFlag{Name: "wait", Usage: "end with exit status 6 when nothing came for that long"},
		},
		Action: p.subscribe,
	}
}

func (p *program) subscribe(c *cli.Context) error {
	args := c.Args().Slice()
	session, forget := c.String("session"), c.Bool("forget")
	if len(args) == 0 {
		return usagef("%s needs a filter", c.Command.HelpName).WithHint("%s 'bob:public/#'", c.Command.HelpName)
	}
	if forget && session == "" {
		return usagef("--forget needs the --session to end")
	}
	qos, err := qosFlag(c)
	if err != nil {
		return err
	}
	peer, filters, err := parseFilters(args)
	if err != nil {
		return err
	}
	keep, err := parseDuration(c.String("keep"))
	if err != nil {
		return err
	}
	at, err := p.eventPlace(c, peer)
	if err != nil {
		return err
	}
	run := &subscribing{eventPlace: at, filters: filters, qos: qos, left: c.Int("count"), wait: c.Duration("wait")}
	if session != "" {
		run.config = events.ClientConfig{ID: "pilotctl/" + session, Session: min(keep, defaultKeep)}
	}
	if forget {
		client, err := at.connect(c.Context, events.ClientConfig{ID: run.config.ID, Clean: true})
		if err != nil {
			return err
		}
		client.Close()
		return p.result(map[string]string{"session": session}, func(w io.Writer) { fmt.Fprintf(w, "the session %q is gone\n", session) })
	}
	return run.all(c.Context)
}

// parseFilters reads [PEER:]FILTER... A peer is named once, or every time the same.
func parseFilters(args []string) (peer string, filters []string, err error) {
	for i, arg := range args {
		place, err := parseTopic(arg)
		if err == nil {
			err = badTopic(events.CheckFilter(place.topic))
		}
		if err != nil {
			return "", nil, err
		}
		if i == 0 {
			peer = place.peer
		} else if place.peer != "" && place.peer != peer {
			return "", nil, usagef("one call subscribes at one agent, not at %.60q and %.60q", peer, place.peer)
		}
		filters = append(filters, place.topic)
	}
	return peer, filters, nil
}

// A subscribing prints what comes from one broker.
type subscribing struct {
	*eventPlace
	config  events.ClientConfig
	filters []string
	qos     byte
	left    int // events still to come; 0: no end
	wait    time.Duration
	began   bool // it was connected once
}

var errEnough = errors.New("enough")

// all goes on over connections that end.
func (s *subscribing) all(ctx context.Context) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 3*time.Second) {
		begin := time.Now()
		err := s.once(ctx)
		switch {
		case errors.Is(err, errEnough):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !s.began || !retryable(err):
			return err
		}
		if time.Since(begin) > time.Minute {
			pause = 100 * time.Millisecond
		}
		if !rest(ctx, pause) {
			return ctx.Err()
		}
	}
}

// once prints what comes over one connection, and acknowledges after that.
func (s *subscribing) once(ctx context.Context) error {
	client, err := s.connect(ctx, s.config)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Subscribe(ctx, s.qos, s.filters...); err != nil {
		return s.failed(err)
	}
	if !s.began {
		s.began = true
		s.tell("subscribed at %s to %s", either(s.name, "this agent"), strings.Join(s.filters, ", "))
	}
	for {
		in, err := s.receive(ctx, client)
		if err != nil {
			return err
		}
		if err := s.show(in); err != nil {
			return overlay.Errorf(overlay.CodeInternal, "write: %v", err)
		}
		if err := client.Acknowledge(in); err != nil {
			return s.failed(err)
		}
		if s.left--; s.left == 0 {
			return errEnough
		}
		s.left = max(s.left, 0)
	}
}

func (s *subscribing) receive(ctx context.Context, client *events.Client) (events.Incoming, error) {
	limited := ctx
	if s.wait > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, s.wait)
		defer cancel()
	}
	in, err := client.Receive(limited)
	switch {
	case err == nil:
		return in, nil
	case ctx.Err() != nil:
		return in, ctx.Err()
	case limited.Err() != nil:
		return in, overlay.Errorf(overlay.CodeTimeout, "no event came within %s", s.wait)
	}
	return in, s.failed(err)
}

// show prints an event: as JSON, or its topic and its payload on one line.
func (s *subscribing) show(in events.Incoming) error {
	if s.json {
		return s.encode(api.Success(in.Event()))
	}
	_, err := fmt.Fprintf(s.stdout, "%s  %s\n", in.Topic, wordsOf(in.Payload))
	return err
}

// wordsOf shows a payload, which is another agent's word: as it is when it cannot
// be mistaken for another line or act on a terminal, quoted otherwise.
func wordsOf(payload []byte) string {
	text := string(payload)
	if !utf8.ValidString(text) || text == "" || text[0] == '"' || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return quoted(text)
	}
	return text
}
