package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A figure is a line of the result.
type figure struct {
	test, name  string
	title, unit string
	digits      int
}

var figures = []figure{
	{"tcp", "mbps", "TCP, one stream", "Mbit/s", 0},
	{"tcp", "cpu", "CPU of both daemons, one stream", "s/GB", 2},
	{"tcp4", "mbps", "TCP, four streams", "Mbit/s", 0},
	{"tcp4", "cpu", "CPU of both daemons, four streams", "s/GB", 2},
	{"tcprev", "mbps", "TCP, reverse", "Mbit/s", 0},
	{"tcprev", "cpu", "CPU of both daemons, reverse", "s/GB", 2},
	{"udp64", "pps", "UDP flood of 64 B, received", "packets/s", 0},
	{"udp64", "cpu", "CPU of both daemons per received packet", "us", 2},
	{"ping", "p50", "ping, median", "us", 0},
	{"ping", "p99", "ping, 99th percentile", "us", 0},
	{"http", "rps", "HTTP, 32 connections, 1 KiB", "requests/s", 0},
	{"http", "p50", "HTTP, median latency", "us", 0},
	{"http", "p99", "HTTP, 99th percentile", "us", 0},
}

type memory struct {
	variant, name string
	anon, all     int // kB
}

type report struct {
	options    options
	machine    machine
	began      time.Time
	took       time.Duration
	results    []result
	relay      []result
	memory     []memory
	notes      []string
	abouts     []string
	benchmarks []string
}

func (r *report) add(res result) { r.results = append(r.results, res) }

func (r *report) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

func (r *report) about(name, text string) {
	if n := name + ": " + text; !slices.Contains(r.abouts, n) {
		r.abouts = append(r.abouts, n)
	}
}

// benchmarkSets are the Go benchmarks of the packet path.
var benchmarkSets = []struct{ pkg, pattern string }{
	{"./crypto", "^Benchmark(Seal|Open|Handshake)$"},
	{"./tun", "^Benchmark(Cut|Merge)$"},
	{"./overlay", "^Benchmark(Outbound|Inbound|Lookup|BundleOfOne)"},
	{"./overlay/firewall", "^BenchmarkFirewall"},
	{"./natt/rendezvous", "^BenchmarkForward"},
}

func (r *report) goBenchmarks(ctx context.Context) error {
	for _, set := range benchmarkSets {
		c := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", set.pattern, "-benchmem", "-cpu", "1", set.pkg)
		c.Stderr = os.Stderr
		out, err := c.Output()
		os.Stderr.Write(out)
		if err != nil {
			return fmt.Errorf("go test -bench in %s: %w: %s", set.pkg, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "Benchmark") {
				r.benchmarks = append(r.benchmarks, strings.TrimRight(set.pkg[2:]+": "+strings.TrimPrefix(line, "Benchmark"), "\n"))
			}
		}
	}
	return nil
}

func (r *report) write(to io.Writer) error {
	w := bufio.NewWriter(to)
	m := r.machine
	fmt.Fprintf(w, "# Pilot beside its rivals\n\n")
	fmt.Fprintf(w, "Written by `bench %s` on %s, in %v. Do not edit: run it again.\n\n",
		strings.Join(os.Args[1:], " "), r.began.UTC().Format("2006-01-02 15:04 UTC"), r.took.Round(time.Second))
	fmt.Fprintf(w, "- machine: %s, %d CPUs, %s, %s\n- built by %s from %s\n", m.cpu, m.cores, m.kernel, m.system, m.golang, m.commit)
	for _, a := range r.abouts {
		fmt.Fprintf(w, "- %s\n", a)
	}
	fmt.Fprintf(w, "- rounds: %d of %d s a test; a test is repeated up to %d times while other programs use more than %v CPU\n",
		r.options.rounds, r.options.seconds, r.options.tries, r.options.foreign)
	for _, n := range r.notes {
		fmt.Fprintf(w, "- %s\n", n)
	}
	for _, v := range r.options.variants {
		r.summary(w, v)
	}
	r.writeMemory(w)
	r.writeRelay(w)
	if len(r.benchmarks) > 0 {
		fmt.Fprintf(w, "\n## Go benchmarks, one CPU\n\n```\n%s\n```\n", strings.Join(r.benchmarks, "\n"))
	}
	fmt.Fprintf(w, "\n## All rounds\n")
	for _, v := range r.options.variants {
		r.rounds(w, v)
	}
	r.relayRoundsTable(w)
	return w.Flush()
}

// series collects one figure of one contestant, by round, and where base is
// given, the ratios to it within the rounds.
func (r *report) series(variant string, f figure, name, base string) (values, ratios []float64) {
	for _, res := range r.results {
		if res.variant != variant || res.test != f.test {
			continue
		}
		v, ok := res.figures[name][f.name]
		if !ok {
			continue
		}
		values = append(values, v)
		if b, ok := res.figures[base][f.name]; ok && b > 0 {
			ratios = append(ratios, v/b)
		}
	}
	return values, ratios
}

const (
	rival = "wireguard-go"
	other = "nebula" // where it is installed
)

func (r *report) summary(w io.Writer, variant string) {
	fmt.Fprintf(w, "\n## Link: %s\n\nMedians; in brackets the range of the rounds. The ratio is that of paired rounds, %s being 1.\n\n", variant, rival)
	head := "| |"
	line := "|---|"
	for _, c := range r.options.contenders {
		head += " " + c + " |"
		line += "---|"
	}
	if slices.Contains(r.options.contenders, other) {
		head += " pilot / " + other + " |"
		line += "---|"
	}
	fmt.Fprintf(w, "%s pilot / %s | goal (floor) | |\n%s---|---|---|\n", head, rival, line)
	for _, f := range figures {
		row := fmt.Sprintf("| %s, %s |", f.title, f.unit)
		any := false
		for _, c := range r.options.contenders {
			v, _ := r.series(variant, f, c, "")
			any = any || len(v) > 0
			row += " " + spread(v, f.digits) + " |"
		}
		if slices.Contains(r.options.contenders, other) {
			_, ratios := r.series(variant, f, "pilot", other)
			row += " " + ratio(ratios) + " |"
		}
		_, ratios := r.series(variant, f, "pilot", rival)
		if any {
			fmt.Fprintf(w, "%s %s |%s\n", row, ratio(ratios), judged(variant, f, ratios))
		}
	}
	r.bound(w, variant)
	r.why(w, variant)
}

func (r *report) writeMemory(w io.Writer) {
	if len(r.memory) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## Memory\n\nPeak of the larger daemon over all tests of the link.\n\n| link | | RssAnon, MB | VmRSS, MB | goal (floor), RssAnon | |\n|---|---|---|---|---|---|\n")
	for _, m := range r.memory {
		judgement := " | "
		if m.name == "pilot" {
			judgement = fmt.Sprintf("<= %d (%d) | %s", memoryGoal, memoryFloor, verdict(float64(m.anon)/1000, memoryGoal, memoryFloor, true))
		}
		fmt.Fprintf(w, "| %s | %s | %.1f | %.1f | %s |\n", m.variant, m.name, float64(m.anon)/1000, float64(m.all)/1000, judgement)
	}
}

func (r *report) rounds(w io.Writer, variant string) {
	fmt.Fprintf(w, "\n### Link: %s\n\n| figure | round |", variant)
	line := "|---|---|"
	for _, c := range r.options.contenders {
		fmt.Fprintf(w, " %s |", c)
		line += "---|"
	}
	fmt.Fprintf(w, " foreign CPUs | tries |\n%s---|---|\n", line)
	for _, f := range figures {
		for _, res := range r.results {
			if res.variant != variant || res.test != f.test {
				continue
			}
			fmt.Fprintf(w, "| %s, %s | %d |", f.title, f.unit, res.round)
			for _, c := range r.options.contenders {
				if v, ok := res.figures[c][f.name]; ok {
					fmt.Fprintf(w, " %s |", fixed(v, f.digits))
				} else {
					fmt.Fprintf(w, " |")
				}
			}
			fmt.Fprintf(w, " %.2f | %d |\n", res.foreign, res.tries)
		}
	}
}

func spread(v []float64, digits int) string {
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("%s (%s-%s)", fixed(median(v), digits), fixed(slices.Min(v), digits), fixed(slices.Max(v), digits))
}

func ratio(v []float64) string {
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("**%s** (%s-%s)", number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
}

func fixed(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }

// number has three significant digits.
func number(v float64) string {
	if v >= 1000 {
		return fixed(v, 0)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}
