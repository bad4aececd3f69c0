package main

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// The relay is measured beside the direct path of the same program: two daemons
// whose ports of the bridge are isolated, so that no frame of either reaches the
// other, and a server, which both see and which is told not to limit them.
const (
	direct       = "direct"
	relayed      = "relayed"
	relayRounds  = 3
	relaySeconds = 3
	relayTries   = 2
)

var (
	relayTests   = []string{"tcp", "tcprev", "ping"}
	relayFigures = []figure{
		{"tcp", "mbps", "TCP, one stream", "Mbit/s", 0},
		{"tcp", "cpu", "CPU of both daemons", "s/GB", 2},
		{"tcp", "server", "CPU of the server", "s/GB", 2},
		{"tcprev", "mbps", "TCP, reverse", "Mbit/s", 0},
		{"tcprev", "cpu", "CPU of both daemons, reverse", "s/GB", 2},
		{"tcprev", "server", "CPU of the server, reverse", "s/GB", 2},
		{"ping", "p50", "ping, median", "us", 0},
		{"ping", "p99", "ping, 99th percentile", "us", 0},
	}
)

// isolate leaves the two hosts nothing but the way to the server.
func (w *world) isolate() error {
	return w.lines("-n R link set pa type bridge_slave isolated on", "-n R link set pb type bridge_slave isolated on")
}

// measureRelay runs the rounds of both ways, one directly after the other.
func measureRelay(ctx context.Context, o options, r *report) error {
	o.rounds, o.seconds, o.tries = min(o.rounds, relayRounds), min(o.seconds, relaySeconds), min(o.tries, relayTries)
	var all []*contestant
	defer func() {
		for _, c := range all {
			c.close()
		}
	}()
	for _, name := range []string{direct, relayed} {
		c, err := start(ctx, o, "default", name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, c)
		r.about(name, c.about)
	}
	for round := 1; round <= o.rounds; round++ {
		for i, test := range relayTests {
			res, err := undisturbed(ctx, o, test, rotated(all, round+i))
			if err != nil {
				return err
			}
			res.round = round
			r.relay = append(r.relay, res)
		}
	}
	return nil
}

// writeRelay is the relay's section of the results.
func (r *report) writeRelay(w io.Writer) {
	if len(r.relay) == 0 {
		return
	}
	rounds := r.relay[len(r.relay)-1].round
	fmt.Fprintf(w, "\n## Relayed by a server\n\nMedians of %d rounds of %d s and their range, and the ratio of paired rounds. Both daemons and the server share the machine's CPUs.\n\n", rounds, min(r.options.seconds, relaySeconds))
	fmt.Fprintf(w, "| | %s | %s | %s / %s |\n|---|---|---|---|\n", direct, relayed, relayed, direct)
	for _, f := range relayFigures {
		near, far, ratios := r.relaySeries(f)
		fmt.Fprintf(w, "| %s, %s | %s | %s | %s |\n", f.title, f.unit, spread(near, f.digits), spread(far, f.digits), ratio(ratios))
	}
}

// relaySeries collects a figure of both ways by round, and their ratios.
func (r *report) relaySeries(f figure) (near, far, ratios []float64) {
	for _, res := range r.relay {
		if res.test != f.test {
			continue
		}
		a, oka := res.figures[direct][f.name]
		b, okb := res.figures[relayed][f.name]
		if oka {
			near = append(near, a)
		}
		if okb {
			far = append(far, b)
		}
		if oka && okb && a > 0 {
			ratios = append(ratios, b/a)
		}
	}
	return near, far, ratios
}

// relayRoundsTable is every round of it.
func (r *report) relayRoundsTable(w io.Writer) {
	if len(r.relay) == 0 {
		return
	}
	fmt.Fprintf(w, "\n### Relayed by a server\n\n| figure | round | %s | %s | foreign CPUs | tries |\n|---|---|---|---|---|---|\n", direct, relayed)
	for _, f := range relayFigures {
		for _, res := range r.relay {
			if res.test != f.test {
				continue
			}
			cells := slices.Repeat([]string{""}, 2)
			for i, name := range []string{direct, relayed} {
				if v, ok := res.figures[name][f.name]; ok {
					cells[i] = fixed(v, f.digits)
				}
			}
			fmt.Fprintf(w, "| %s, %s | %d | %s | %s | %.2f | %d |\n", f.title, f.unit, res.round, cells[0], cells[1], res.foreign, res.tries)
		}
	}
}
