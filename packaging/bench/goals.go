package main

import (
	"fmt"
	"io"
	"slices"
)

// A target is what a ratio to the rival is to be: at least floor, and better
// goal; or at most, where less is better.
type target struct {
	variant, test, name string
	goal, floor         float64
	less                bool
}

var targets = []target{
	{"default", "tcp", "mbps", 2.6, 2.2, false},
	{"default", "tcp", "cpu", 0.28, 0.34, true},
	{"default", "tcp4", "mbps", 2.9, 2.4, false},
	{"default", "tcprev", "mbps", 2.6, 2.2, false},
	{"default", "udp64", "pps", 9, 6, false},
	{"default", "udp64", "cpu", 0.07, 0.10, true},
	{"default", "ping", "p50", 0.37, 0.5, true},
	{"default", "http", "rps", 3.5, 3, false},
	{"default", "http", "p50", 0.23, 0.30, true},
	{"nic", "tcp", "mbps", 2.2, 1.8, false},
	{"nouso", "tcp", "mbps", 3.3, 2.8, false},
}

// Peak RssAnon of a daemon, MB.
const memoryGoal, memoryFloor = 16, 24

func targetOf(variant string, f figure) (target, bool) {
	i := slices.IndexFunc(targets, func(t target) bool {
		return t.variant == variant && t.test == f.test && t.name == f.name
	})
	if i < 0 {
		return target{}, false
	}
	return targets[i], true
}

// verdict says how a value stands to goal and floor.
func verdict(v, goal, floor float64, less bool) string {
	reaches := func(limit float64) bool { return v >= limit && !less || v <= limit && less }
	switch {
	case reaches(goal):
		return "goal met"
	case reaches(floor):
		return "floor met"
	}
	return "missed"
}

// judged is the last two columns of a line of the summary.
func judged(variant string, f figure, ratios []float64) string {
	t, ok := targetOf(variant, f)
	if !ok {
		return " | |"
	}
	sign := ">="
	if t.less {
		sign = "<="
	}
	text := "not measured"
	if len(ratios) > 0 {
		text = verdict(median(ratios), t.goal, t.floor, t.less)
	}
	return fmt.Sprintf(" %s %v (%v) | %s |", sign, t.goal, t.floor, text)
}

// bound notes what the programs at the ends allow: the ratio of the bare link,
// where that does not reach the goal either. Bundled datagrams may go faster
// through a tunnel than one by one without it, and then it bounds nothing.
func (r *report) bound(w io.Writer, variant string) {
	for _, f := range figures {
		t, ok := targetOf(variant, f)
		if !ok || !slices.Contains(r.options.contenders, "veth") {
			continue
		}
		_, ratios := r.series(variant, f, "veth", rival)
		_, ours := r.series(variant, f, "pilot", rival)
		if len(ratios) == 0 || len(ours) == 0 || verdict(median(ours), median(ratios), median(ratios), t.less) == "goal met" {
			continue
		}
		if v := verdict(median(ratios), t.goal, t.goal, t.less); v != "goal met" {
			fmt.Fprintf(w, "\n%s: the bare link itself comes to %s of %s, so the programs at its ends bound this figure.\n", f.title, number(median(ratios)), rival)
		}
	}
}
