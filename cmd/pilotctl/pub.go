package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services/events"
	"github.com/pilotnet/pilot/trust"
)

func (p *program) pubCommand() *cli.Command {
	return &cli.Command{
		Name:      "pub",
		Usage:     "publish an event, here or at a peer",
		ArgsUsage: "[PEER:]TOPIC PAYLOAD|-",
		Description: `Without a peer the event is published at this agent, for peers that subscribe
there. At a peer one publishes below peer/NAME/, NAME being what that peer calls
this agent. The command ends when the event is stored for all subscribers; what
is too much for one of them is an error. A topic with a colon is written :TOPIC.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "retain", Usage: "keep it for later subscribers; an empty PAYLOAD ends that"},
			&cli.IntFlag{Name: "qos", Value: 1, Usage: "1: stored before the command ends; 0: sent, and perhaps lost"},
			&cli.StringFlag{Name: "type", Usage: "content type, such as application/json"},
			&cli.BoolFlag{Name: "lines", Usage: "with -: every line of the input is an event"},
			patienceFlag(),
		},
		Action: p.publish,
	}
}

func (p *program) publish(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) != 2 {
		return usagef("%s needs a topic and a payload", c.Command.HelpName).WithHint("%s bob:peer/NAME/log hello; with - the payload comes from the input", c.Command.HelpName)
	}
	qos, err := qosFlag(c)
	if err != nil {
		return err
	}
	lines := c.Bool("lines")
	if lines && args[1] != "-" {
		return usagef("--lines reads events from the input").WithHint("write - for the payload")
	}
	if t := c.String("type"); t != "" {
		if _, _, err := mime.ParseMediaType(t); err != nil {
			return usagef("--type %.60q is no content type", t)
		}
	}
	place, err := parseTopic(args[0])
	if err == nil {
		err = badTopic(events.CheckTopic(place.topic))
	}
	if err != nil {
		return err
	}
	at, err := p.eventPlace(c, place.peer)
	if err != nil {
		return err
	}
	run := &publishing{eventPlace: at, numbered: lines, patience: c.Duration("patience"), stored: func(int) error { return nil },
		like: events.Message{Topic: place.topic, QoS: qos, Retain: c.Bool("retain"), ContentType: c.String("type")}}
	var source <-chan piece
	if lines {
		source = eachLine(p.stdin)
	} else {
		source = oneEvent(args[1], p.stdin)
	}
	if lines && p.json {
		run.stored = func(line int) error { return p.encode(api.Success(map[string]int{"line": line})) }
	}
	if err := run.all(c.Context, source); err != nil {
		return err
	}
	if lines && p.json {
		return nil
	}
	result := published{Topic: place.topic, Peer: at.name, Events: run.done}
	return p.result(result, func(w io.Writer) {
		word := "stored"
		if qos == 0 {
			word = "sent"
		}
		fmt.Fprintf(w, "%s  %s  %d event%s\n", word, shownTopic(at.name, place.topic), run.done, plural(run.done))
	})
}

// A published is the result of pub.
type published struct {
	Topic  string `json:"topic"`
	Peer   string `json:"peer,omitempty"` // empty: at this agent
	Events int    `json:"events"`
}

func shownTopic(peer, topic string) string {
	if peer == "" {
		return topic
	}
	return peer + ":" + topic
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func qosFlag(c *cli.Context) (byte, error) {
	if n := c.Int("qos"); n != 0 && n != 1 {
		return 0, usagef("--qos %d: want 0 or 1", n)
	}
	return byte(c.Int("qos")), nil
}

func badTopic(err error) error {
	if err == nil {
		return nil
	}
	return usagef("%s", strings.TrimPrefix(err.Error(), "events: ")).WithHint("topics are like public/news, filters like public/#")
}

// A topicPlace is [PEER:]TOPIC of a command line.
type topicPlace struct{ peer, topic string }

// parseTopic splits at the first colon after the peer. A peer that has colons
// itself stands in brackets, or is an address of the form N:NNNN.NNNN.NNNN.
func parseTopic(arg string) (topicPlace, error) {
	if rest, ok := strings.CutPrefix(arg, "["); ok {
		peer, topic, ok := strings.Cut(rest, "]:")
		if !ok {
			return topicPlace{}, usagef("%.60q: there is no ]: after the address", arg)
		}
		return topicPlace{peer, topic}, nil
	}
	first, rest, ok := strings.Cut(arg, ":")
	if !ok {
		return topicPlace{topic: arg}, nil
	}
	if second, topic, ok := strings.Cut(rest, ":"); ok {
		if ref, err := ipam.ParseRef(first + ":" + second); err == nil && ref.Kind != ipam.RefName {
			return topicPlace{first + ":" + second, topic}, nil
		}
	}
	return topicPlace{first, rest}, nil
}

// An eventPlace is a broker: this agent's, or a peer's.
type eventPlace struct {
	*program
	name   string // of the peer; empty: this agent
	at     string // address and port of a peer
	socket string // of this agent
}

func (p *program) eventPlace(c *cli.Context, name string) (*eventPlace, error) {
	d, err := p.fileDesk(c)
	if err != nil {
		return nil, err
	}
	at, err := p.places(c)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return &eventPlace{program: p, socket: at.socket}, d.ready(c.Context)
	}
	peer, err := d.peer(c.Context, name)
	if err != nil {
		return nil, err
	}
	const tcp = 6
	if scope, err := trust.ParseScope(peer.Out); err != nil || !scope.Allows(tcp, events.Port) {
		return nil, overlay.Errorf(overlay.CodeNotTrusted, "%s does not let this agent reach its events, port %d (but %s)", peer.Name, events.Port, portsText(peer.Out)).
			WithHint("ask for it: pilotctl trust request CONTACT --ports %d --reason TEXT", events.Port)
	}
	addr, err := netip.ParseAddr(peer.ULA)
	if err != nil {
		return nil, overlay.Errorf(overlay.CodeInternal, "the daemon gave no address for %s", peer.Name)
	}
	return &eventPlace{program: p, name: peer.Name, socket: at.socket, at: netip.AddrPortFrom(addr, events.Port).String()}, nil
}

const dialTime = 10 * time.Second

// connect begins an MQTT session.
func (e *eventPlace) connect(ctx context.Context, config events.ClientConfig) (*events.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := e.open(ctx)
	if err != nil {
		return nil, e.failed(err)
	}
	client, err := events.Connect(ctx, conn, config)
	if err != nil {
		return nil, e.failed(err)
	}
	return client, nil
}

func (e *eventPlace) open(ctx context.Context) (net.Conn, error) {
	if e.name == "" {
		return events.Dial(ctx, e.socket)
	}
	return e.toPeers(api.NewClient(e.socket))(ctx, "tcp", e.at)
}

// failed is what happened with a broker, in the terms of this program. What can
// pass is retryable.
func (e *eventPlace) failed(err error) error {
	where := e.name
	if where == "" {
		where = "this agent"
	}
	r, known := new(events.Refusal), new(overlay.Error)
	switch {
	case errors.As(err, &known):
		return err
	case !errors.As(err, &r):
		failure := overlay.Errorf(overlay.CodePeerOffline, "no answer from the events of %s, port %d: %s", where, events.Port, shortCause(err)).Retry()
		if e.name == "" {
			return failure.WithHint("pilotctl status shows whether the agent runs; the service may be switched off (--services)")
		}
		return failure.WithHint("pilotctl ping %s shows whether it is there; its service may be switched off", e.name)
	}
	const takenOver, shuttingDown = 0x8e, 0x8b
	code, hint := overlay.CodeInternal, ""
	switch {
	case e.name == "" && r.Status == 404:
		return ownEventsError(err)
	case r.Status == 503:
		return overlay.Errorf(overlay.CodePeerOffline, "the events of %s do not run now", where).WithHint("pilotctl status says why").Retry()
	case r.Code == takenOver:
		return overlay.Errorf(overlay.CodeConflict, "another program took over the session").WithHint("a session is for one program at a time: choose another name")
	case r.Code == shuttingDown:
		return overlay.Errorf(overlay.CodePeerOffline, "%s ends", where).Retry()
	case r.Status == 403:
		code, hint = overlay.CodeNotTrusted, "curl http://NAME.pilot.internal:1002/ shows what this agent may do there"
		if e.name != "" {
			hint = fmt.Sprintf("curl http://%s.pilot.internal:%d/ shows what this agent may do there; %s can allow more: pilotctl events --allow PEER=FILTER", e.name, events.Port, e.name)
		}
	case r.Status == 400 || r.Status == 413:
		code = overlay.CodeInvalidArgument
	case r.Status == 507:
		code, hint = overlay.CodeQuota, "it goes when subscribers have taken what waits for them"
	}
	failure := overlay.Errorf(code, "%s: %s", where, r.Reason)
	if hint != "" {
		failure = failure.WithHint("%s", hint)
	}
	return failure
}

// shortCause is the innermost word of a network error.
func shortCause(err error) string {
	op := new(net.OpError)
	switch {
	case errors.Is(err, io.EOF):
		return "it closed the connection"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

func retryable(err error) bool {
	e := new(overlay.Error)
	return errors.As(err, &e) && e.Retryable
}

// A piece is an event to be published, or why there is none.
type piece struct {
	payload []byte
	err     error
}

// oneEvent is the payload of a command line, or all of the input.
func oneEvent(arg string, in io.Reader) <-chan piece {
	ch := make(chan piece, 1)
	defer close(ch)
	if arg != "-" {
		ch <- piece{payload: []byte(arg)}
		return ch
	}
	b, err := io.ReadAll(io.LimitReader(in, events.MaxPayload+1))
	if err == nil && len(b) > events.MaxPayload {
		err = usagef("the input is longer than an event can be: %d bytes", events.MaxPayload)
	}
	ch <- piece{payload: b, err: err}
	return ch
}

// eachLine is every line of the input. The goroutine ends with the input, or with
// the process.
func eachLine(in io.Reader) <-chan piece {
	ch := make(chan piece, 64)
	go func() {
		defer close(ch)
		s := bufio.NewScanner(in)
		s.Buffer(make([]byte, 64<<10), events.MaxPayload+1)
		for s.Scan() {
			ch <- piece{payload: []byte(s.Text())}
		}
		if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
			ch <- piece{err: usagef("a line is longer than an event can be: %d bytes", events.MaxPayload)}
		} else if err != nil {
			ch <- piece{err: localError(err)}
		}
	}()
	return ch
}
