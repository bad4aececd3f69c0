package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) waitCommand() *cli.Command {
	return &cli.Command{
		Name:  "wait",
		Usage: "wait until this agent is of use",
		Description: `Returns when a home server knows the agent, so that peers can find it, or with
--for live when the daemon answers. A daemon that does not run yet is waited for
too. If it takes longer than --timeout the exit status is 6.`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "wait so long; 0 for ever"},
			&cli.StringFlag{Name: "for", Value: "ready", Usage: "live or ready"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			level, timeout := c.String("for"), c.Duration("timeout")
			if level != "live" && level != "ready" {
				return usagef("--for %.40q: want live or ready", level)
			}
			if timeout < 0 {
				return usagef("--timeout %v: want a time from now on", timeout)
			}
			client, err := p.client(c)
			if err != nil {
				return err
			}
			s, err := await(c.Context, client, level, timeout)
			if err != nil {
				return err
			}
			return p.result(map[string]string{"for": level, "state": s.State}, func(w io.Writer) { fmt.Fprintln(w, level) })
		},
	}
}

// await asks the daemon until it is live or ready. The error says what was
// missing last.
func await(ctx context.Context, client *api.Client, level string, timeout time.Duration) (overlay.Status, error) {
	var late <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		late = timer.C
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		s, err := client.Status(ctx)
		if err == nil && (level == "live" || ready(s)) {
			return s, nil
		}
		if err != nil && api.AsError(err).Code != overlay.CodeNotRunning && api.AsError(err).Code != overlay.CodeTimeout {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-late:
			if err != nil {
				return s, overlay.Errorf(overlay.CodeTimeout, "not %s after %v: %v", level, timeout, err).
					WithHint("pilotctl up starts the agent; pilotctl service status tells of the service").Retry()
			}
			return s, overlay.Errorf(overlay.CodeTimeout, "not ready after %v: %s", timeout, notReady(s)).
				WithHint("pilotctl status tells more; pilotctl doctor looks for the fault").Retry()
		case <-tick.C:
		}
	}
}
