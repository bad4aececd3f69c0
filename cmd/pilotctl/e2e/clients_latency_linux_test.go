package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A load is what is done in each way of a round.
type load struct {
	name string
	ways []way
	run  func(t *testing.T, w way) []float64 // one figure for each of columns
}

// A way leads from alice's machine to a program on bob's. The first of a load is
// what the others are compared with.
type way struct {
	name  string
	reach string // a URL, or host and port
}

// TestLatency measures what the overlay and serve add to HTTP, and events beside
// mosquitto, and writes overlay/services/LATENCY.md. It runs with PILOT_LATENCY=1
// only (make latency); PILOT_LATENCY_ROUNDS is the number of rounds (5),
// PILOT_LATENCY_SECONDS what one HTTP measurement takes (5) and
// PILOT_LATENCY_EVENTS the number of events in one (20000).
func TestLatency(t *testing.T) {
	if os.Getenv("PILOT_LATENCY") != "1" {
		t.Skip("measures for minutes and wants a quiet machine; PILOT_LATENCY=1 runs it")
	}
	rounds, seconds, events := numberFrom(t, "PILOT_LATENCY_ROUNDS", 5), numberFrom(t, "PILOT_LATENCY_SECONDS", 5), numberFrom(t, "PILOT_LATENCY_EVENTS", 20_000)
	l := wire(t, "a1", "b1")
	l.needTools(t, "wrk mosquitto mosquitto_pub mosquitto_sub")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "7,1002,1883,8080-8081")
	direct(t, alice, bob)
	l.latencyServers(t, bob)
	bob.pilot(t, "serve", "http", "3000", "--port", "8081")
	bob.pilot(t, "events", "--allow", "alice=peer/alice/#")

	veth := wired("b1")
	http := []way{{"plain veth", "http://" + veth + ":8080/"}, {"overlay", bobs + "8080/"}, {"overlay, serve http", bobs + "8081/"}}
	mqtt := []way{{"mosquitto, plain veth", veth + " 1883"}, {"mosquitto, overlay", "bob.pilot.internal 1883"}, {"events 1002, overlay", "bob.pilot.internal 1002"}}
	wrk := func(conns int) func(*testing.T, way) []float64 {
		return func(t *testing.T, w way) []float64 { return l.wrk(t, alice, w, conns, seconds) }
	}
	runs := 0
	mosquitto := func(qos int, session bool) func(*testing.T, way) []float64 {
		return func(t *testing.T, w way) []float64 {
			runs++ // each has a topic and a session of its own
			var options []string
			if session {
				options = []string{"-c", "-x", "3600", "-i", fmt.Sprint("load", runs)}
			}
			return l.mosquitto(t, alice, w, fmt.Sprint("peer/alice/load", runs), qos, events, options)
		}
	}
	report := latencyReport(t, rounds, seconds, events)
	for _, group := range []struct {
		columns []string
		loads   []load
	}{
		{[]string{"p50, µs", "p99, µs", "requests/s"}, []load{{"HTTP, 1 connection", http, wrk(1)}, {"HTTP, 32 connections", http, wrk(32)}}},
		{[]string{"events/s", "lost"}, []load{
			{"MQTT 5, QoS 0", mqtt, mosquitto(0, false)}, {"MQTT 5, QoS 1", mqtt, mosquitto(1, false)}, {"MQTT 5, QoS 1, to a session that outlives its connection", mqtt, mosquitto(1, true)},
		}},
	} {
		for _, load := range group.loads {
			report.WriteString(load.measure(t, rounds, group.columns))
		}
	}
	if err := os.WriteFile(filepath.Join(root, "overlay", "services", "LATENCY.md"), report.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// measure goes every way once in each round, in another order each time, and
// returns the table of medians. Ratios and differences are those of the same
// round.
func (l load) measure(t *testing.T, rounds int, columns []string) string {
	t.Helper()
	all := make([][][]float64, len(l.ways)) // by way, round and column
	for round := range rounds {
		for i := range l.ways {
			at := (i + round) % len(l.ways)
			all[at] = append(all[at], nil)
			all[at][round] = l.run(t, l.ways[at])
			t.Logf("%s, round %d, %s: %v", l.name, round+1, l.ways[at].name, all[at][round])
		}
	}
	first := columns[0]
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n| way | %s | %s beside the first way | %s more than the way above |\n|---|%s\n", l.name, strings.Join(columns, " | "), first, first, strings.Repeat("---|", len(columns)+2))
	for w := range l.ways {
		of := func(figure func(round int) float64) float64 {
			var list []float64
			for round := range rounds {
				list = append(list, figure(round))
			}
			return median(list)
		}
		fmt.Fprintf(&b, "| %s |", l.ways[w].name)
		for c := range columns {
			fmt.Fprintf(&b, " %.0f |", of(func(round int) float64 { return all[w][round][c] }))
		}
		above := max(w-1, 0)
		fmt.Fprintf(&b, " x %.2f | %+.0f |\n", of(func(round int) float64 { return all[w][round][0] / all[0][round][0] }),
			of(func(round int) float64 { return all[w][round][0] - all[above][round][0] }))
	}
	return b.String()
}

func median[T cmp.Ordered](list []T) T {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// latencyReport is the head of the file.
func latencyReport(t *testing.T, rounds, seconds, events int) *bytes.Buffer {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	commit, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	b := new(bytes.Buffer)
	fmt.Fprintf(b, `# What the overlay adds to HTTP and MQTT

Measured by `+"`make latency`"+` on %s: commit %s, Linux %s %s, %d CPUs, which both agents, the server, clients and brokers share.
Two network namespaces on one Ethernet of veth pairs without delay. Medians of %d rounds; each round goes every way once, in
another order.

HTTP is wrk for %d s against a server in Go that answers with 200 bytes; latencies are wrk's own, of requests that follow one
another on each connection. "serve http" leads to the same server at 127.0.0.1. MQTT is mosquitto_pub with %d lines of 100
bytes and one mosquitto_sub on the same machine; the rate is between the first and the last that arrives. mosquitto keeps
everything in memory and has no limit to its queues; events 1002 has what is for a session that outlives its connection on
the disk before it acknowledges it.
`, time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(commit)), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU(), rounds, seconds, events)
	return b
}

// latencyServers starts what is measured on bob's machine.
func (l *lab) latencyServers(t *testing.T, bob *agent) {
	t.Helper()
	bob.background(t, l.dir, "ready", goProgram("web", "[::]:8080", "127.0.0.1:3000")...)
	conf := filepath.Join(l.dir, "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener 1883\nallow_anonymous true\nmax_queued_messages 0\nuser root\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bob.background(t, l.dir, "running", "mosquitto", "-c", conf, "-v")
}

// wrkReport prints the median and the 99th percentile in microseconds, the rate
// and what went wrong.
const wrkReport = `function done(s, latency)
  io.write(string.format("\nresult %d %d %f %d\n", latency:percentile(50), latency:percentile(99), s.requests * 1e6 / s.duration,
    s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout))
end`

func (l *lab) wrk(t *testing.T, a *agent, w way, conns, seconds int) []float64 {
	t.Helper()
	script := filepath.Join(l.dir, "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkReport), 0o644); err != nil {
		t.Fatal(err)
	}
	o := a.run(t, "wrk", "-t1", "-c"+itoa(conns), "-d"+itoa(seconds)+"s", "-s", script, w.reach)
	var p50, p99, rate float64
	var wrong int
	_, after, _ := strings.Cut(o.stdout, "\nresult ")
	if _, err := fmt.Sscan(after, &p50, &p99, &rate, &wrong); err != nil || wrong > 0 {
		t.Fatalf("%s: %v, %d errors: %s", w.name, err, wrong, o)
	}
	return []float64{p50, p99, rate}
}

func (l *lab) mosquitto(t *testing.T, a *agent, w way, topic string, qos, events int, session []string) []float64 {
	t.Helper()
	host, port, _ := strings.Cut(w.reach, " ")
	to := func(program string, more ...string) []string {
		return append([]string{program, "-V", "5", "-h", host, "-p", port, "-q", itoa(qos), "-t", topic}, more...)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	sub := a.command(ctx, to("mosquitto_sub", append(session, "-W", "110", "-F", "%U %l")...)...)
	var times stamps
	sub.Stdout = &times
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sub.Process.Kill(); sub.Wait() }()
	// One event after the other until the subscription is there, then the load.
	within(t, 20*time.Second, w.name+": the subscription is there", func() bool {
		if o := a.run(t, to("mosquitto_pub", "-m", "first")...); o.status != 0 {
			t.Fatalf("%s: %s", w.name, o)
		}
		return times.subscribed()
	})
	pub := a.command(ctx, to("mosquitto_pub", "-l")...)
	pub.Stdin = strings.NewReader(strings.Repeat(strings.Repeat("x", eventSize)+"\n", events))
	if o := finish(t, pub); o.status != 0 {
		t.Fatalf("%s: %s", w.name, o)
	}
	for last := -1; last < times.count() && times.count() < events; { // until a second brings no more
		last = times.count()
		poll(ctx, time.Second, func() bool { return times.count() >= events })
	}
	return times.rate(t, events)
}

// eventSize is the length of the events that are counted, in bytes.
const eventSize = 100

// stamps collects the times of events, lines of seconds since 1970 and a size.
type stamps struct {
	mu   sync.Mutex
	rest []byte
	any  bool
	list []float64
}

func (s *stamps) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, p...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		s.rest, s.any = rest, true
		var at float64
		var size int
		if _, err := fmt.Sscan(string(line), &at, &size); err != nil {
			return 0, err
		}
		if size == eventSize {
			s.list = append(s.list, at)
		}
	}
}

func (s *stamps) subscribed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.any
}

func (s *stamps) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// rate is that of the events, and how many of those expected are missing.
func (s *stamps) rate(t *testing.T, expected int) []float64 {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.list)
	if n < 2 {
		t.Fatalf("%d of %d events arrived", n, expected)
	}
	return []float64{float64(n-1) / (s.list[n-1] - s.list[0]), float64(expected - n)}
}
