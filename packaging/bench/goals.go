package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// A target is what a ratio to the rival is to be: at least floor, and better
// goal; or at most, where less is better.
type target struct {
	variant, test, name string
	goal, floor         float64
	less                bool
}

// whys say where the time goes of figures that may miss their floor: what a profile
// showed, what that bounds, and what to try next. They are printed beneath the
// figures that do miss it.
var whys = []struct{ variant, test, text string }{
	{"default", "ping", `nobody waited: ping and both daemons took turns on one CPU, with four process switches and 24 short system
calls of the daemons in a round trip. 27 % of it was the daemons' own code, 27 % sending and receiving datagrams (the link
included), 17 % reading and writing the TUN devices, 14 % waiting for events and switching, 14 % ping. So the length of the
path bounds it, run with cold caches every 2 ms, and not a wake-up that could be spared. Next: one loop that waits for both
descriptors itself, without the scheduler of Go, and does not read again what it has found empty.`},
	{"default", "http", `the daemons used 37 % of both CPUs, the two programs 48 %, and 13 % were idle. 40 % of the daemons' time was
writing to the TUN devices, one call for each packet, in which the kernel does the whole work of TCP and wakes the program;
a fifth was sending. Packets of different connections cannot be written in one call. Next: that daemons and programs
wake each other less often while one CPU has time for both.`},
	{"nic", "tcp", oneSender},
	{"nouso", "tcp", oneSender},
}

const profiled = "two virtual CPUs of an AMD EPYC, Linux 6.18"

const oneSender = `the sending daemon's one goroutine kept a CPU busy for nine tenths of the time while the other was idle for
three. Three quarters of it was the system call that sends: in it the kernel cuts each run into packets of 1500 bytes and
carries them one by one over the link into the other host. A seventh was sealing, a tenth reading the TUN device. The
kernel's part is the same for every tunnel. Next: to seal in one goroutine while another sends, which pays only while a CPU
has nothing else to do.`

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

// why tells where the time of missed figures goes.
func (r *report) why(w io.Writer, variant string) {
	for _, y := range whys {
		missed := func(f figure) bool {
			t, ok := targetOf(variant, f)
			_, ratios := r.series(variant, f, "pilot", rival)
			return ok && f.test == y.test && len(ratios) > 0 && verdict(median(ratios), t.goal, t.floor, t.less) == "missed"
		}
		if i := slices.IndexFunc(figures, missed); y.variant == variant && i >= 0 {
			fmt.Fprintf(w, "\n%s: in a profile (%s) %s\n", figures[i].title, profiled, strings.ReplaceAll(y.text, "\n", " "))
		}
	}
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
