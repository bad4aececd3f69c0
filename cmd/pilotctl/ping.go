package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

const (
	pingCount       = 4
	pingUntilDirect = 60 // pings at most, unless -c says otherwise
)

func (p *program) pingCommand() *cli.Command {
	return &cli.Command{
		Name:      "ping",
		Usage:     "ping a peer through the tunnel; every answer says by which path",
		ArgsUsage: "PEER",
		Description: `Ping passes whatever the ports of the trust are. The exit status is 6 when
nothing came back, or with --until-direct when no answer came directly.`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "count", Aliases: []string{"c"}, Value: pingCount, Usage: "how many; 0: until interrupted"},
			&cli.DurationFlag{Name: "interval", Aliases: []string{"i"}, Value: time.Second, Usage: "time between two"},
			&cli.DurationFlag{Name: "timeout", Value: 5 * time.Second, Usage: "how long to wait for each answer"},
			&cli.BoolFlag{Name: "until-direct", Usage: "stop at the first answer that came directly"},
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a peer")
			if err != nil {
				return err
			}
			run := pinging{program: p, peer: args[0], count: c.Int("count"), interval: c.Duration("interval"),
				timeout: c.Duration("timeout"), untilDirect: c.Bool("until-direct")}
			if run.untilDirect && !c.IsSet("count") {
				run.count = pingUntilDirect
			}
			if run.count < 0 || run.timeout <= 0 || run.interval < 10*time.Millisecond {
				return usagef("--count, --interval (at least 10ms) and --timeout must be positive")
			}
			if run.client, err = p.client(c); err != nil {
				return err
			}
			return run.run(c.Context)
		},
	}
}

// A pinging is one run of the command.
type pinging struct {
	*program
	client      *api.Client
	peer        string
	count       int
	interval    time.Duration
	timeout     time.Duration
	untilDirect bool

	label          string // how the peer is shown
	sent           int
	times          []float64
	direct         bool
	last           *overlay.Error // why the last one failed
	minRTT, maxRTT float64
}

func (r *pinging) run(ctx context.Context) error {
	if err := r.find(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := r.one(ctx); err != nil {
			return err
		}
		if r.sent == r.count || r.untilDirect && r.direct {
			break
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	r.summary()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(r.times) == 0:
		e := overlay.Errorf(overlay.CodeTimeout, "no answer from %s", r.peer).Retry()
		if r.last != nil && r.last.Code == overlay.CodePeerOffline {
			e.Code = overlay.CodePeerOffline
		}
		return e.WithHint("%s", either(hintOf(r.last), "pilotctl status says by which paths it was tried"))
	case r.untilDirect && !r.direct:
		return overlay.Errorf(overlay.CodeTimeout, "%s answers, but not directly", r.peer).
			WithHint("pilotctl status says why not").Retry()
	}
	return nil
}

func hintOf(e *overlay.Error) string {
	if e == nil {
		return ""
	}
	return e.Hint
}

// find makes the label, which needs the peer's name and address.
func (r *pinging) find(ctx context.Context) error {
	r.label = r.peer
	ref, err := ipam.ParseRef(r.peer)
	if err != nil {
		return badInput(err, "a peer is a name, an address, a ULA, a fingerprint or a contact: pilotctl peers")
	}
	peers, err := r.client.Peers(ctx)
	if err != nil {
		return err
	}
	for _, peer := range peers {
		if means(ref, peer.Name, peer.Address, peer.Fingerprint) {
			r.label = fmt.Sprintf("%s (%s)", peer.Name, peer.ULA)
		}
	}
	return nil
}

// one sends one ping and shows what came of it. Only an error that the next one
// would meet again is returned.
func (r *pinging) one(ctx context.Context) error {
	r.sent++
	pong, err := r.client.Ping(ctx, r.peer, r.sent, r.timeout)
	if err == nil {
		r.direct = r.direct || pong.Path == "direct"
		r.note(pong.RTTMillis)
		return r.result(pong, func(w io.Writer) {
			fmt.Fprintf(w, "reply from %s path=%s endpoint=%s seq=%d time=%.1fms\n", r.label, pong.Path, pong.Endpoint, pong.Seq, pong.RTTMillis)
		})
	}
	if ctx.Err() != nil {
		return nil
	}
	e := api.AsError(err)
	if e.Code != overlay.CodeTimeout && e.Code != overlay.CodePeerOffline {
		return err
	}
	r.last = e
	if r.json {
		return r.encode(api.Failure(e))
	}
	fmt.Fprintf(r.stdout, "no answer from %s seq=%d: %s\n", r.label, r.sent, e.Message)
	return nil
}

func (r *pinging) note(rtt float64) {
	if len(r.times) == 0 {
		r.minRTT, r.maxRTT = rtt, rtt
	}
	r.minRTT, r.maxRTT = min(r.minRTT, rtt), max(r.maxRTT, rtt)
	r.times = append(r.times, rtt)
}

// A pingSummary is the last line of the stream.
type pingSummary struct {
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Direct   bool    `json:"direct"` // some answer came directly
	Min      float64 `json:"min_ms"`
	Average  float64 `json:"avg_ms"`
	Max      float64 `json:"max_ms"`
}

func (r *pinging) summary() {
	s := pingSummary{Sent: r.sent, Received: len(r.times), Direct: r.direct, Min: r.minRTT, Max: r.maxRTT}
	for _, t := range r.times {
		s.Average += t / float64(len(r.times))
	}
	r.result(s, func(w io.Writer) {
		fmt.Fprintf(w, "%d sent, %d received", s.Sent, s.Received)
		if s.Received > 0 {
			fmt.Fprintf(w, ", min/avg/max %.1f/%.1f/%.1f ms", s.Min, s.Average, s.Max)
		}
		fmt.Fprintln(w)
	})
}
