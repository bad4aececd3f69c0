package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rounds     int
	seconds    int
	tries      int
	patience   time.Duration
	foreign    float64
	tests      []string
	variants   []string
	contenders []string
	out        string
	benchmarks bool
	relay      bool
	pilotctl   string
	until      time.Time
	soak       time.Duration
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "httpd" {
		fail(serveHTTP(os.Args[2]))
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "sink" {
		fail(sink())
		return
	}
	if len(os.Args) == 5 && os.Args[1] == "flood" {
		fail(flood(os.Args[2], os.Args[3], os.Args[4]))
		return
	}
	if len(os.Args) == 6 && os.Args[1] == "end" {
		d, err := time.ParseDuration(os.Args[5])
		fail(errors.Join(err, soakEnd(os.Args[2], os.Args[3], os.Args[4], d)))
		return
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail(run(ctx, o))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 5, "rounds of the default link; the others get as many")
	f.IntVar(&o.seconds, "seconds", 4, "seconds of a test")
	f.IntVar(&o.tries, "tries", 3, "tries of a test that other programs disturb")
	f.DurationVar(&o.patience, "patience", 14*time.Minute, "time after which no disturbed test is tried again")
	f.Float64Var(&o.foreign, "foreign", 0.1, "CPUs used by other programs that count as a disturbance")
	tests := f.String("tests", strings.Join(allTests, ","), "tests on the default link")
	variants := f.String("variants", "default,nic,nouso", "links: default, nic (the sender's kernel cuts, the receiver's joins), nouso (every packet alone)")
	contenders := f.String("contestants", defaultContenders(), "who takes part; nebula if it is installed")
	f.BoolVar(&o.relay, "relay", true, "measure two agents behind a relay as well")
	f.StringVar(&o.out, "out", "packaging/bench/RESULTS.md", "file for the results; - prints them")
	f.BoolVar(&o.benchmarks, "benchmarks", true, "run the Go benchmarks as well")
	f.StringVar(&o.pilotctl, "pilotctl", "", "program to measure; default: built from this source")
	f.DurationVar(&o.soak, "soak", 0, "instead, send so long through a link that loses and reorders, and check bytes and memory")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.tests, o.variants, o.contenders = list(*tests), list(*variants), list(*contenders)
	for _, t := range o.tests {
		if !slices.Contains(allTests, t) {
			return o, fmt.Errorf("-tests: %q is none of %s", t, strings.Join(allTests, ", "))
		}
	}
	for _, v := range o.variants {
		if _, ok := links[v]; !ok {
			return o, fmt.Errorf("-variants: %q is none of default, nic, nouso", v)
		}
	}
	for _, c := range o.contenders {
		if _, ok := starters[c]; !ok {
			return o, fmt.Errorf("-contestants: %q is none of veth, wireguard-go, nebula, pilot", c)
		}
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.rounds < 1 || o.seconds < 1 || o.tries < 1 {
		return o, errors.New("-rounds, -seconds and -tries are at least 1")
	}
	return o, nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func run(ctx context.Context, o options) error {
	if runtime.GOOS != "linux" {
		return errors.New("the measurement needs Linux network namespaces")
	}
	if os.Geteuid() != 0 {
		return errors.New("the measurement needs root for its network namespaces: sudo make bench")
	}
	for _, tool := range []string{"ip", "iperf3", "ping"} {
		if lookup(tool) == "" {
			return fmt.Errorf("the measurement needs %s", tool)
		}
	}
	if o.soak > 0 {
		return soak(ctx, o)
	}
	began := time.Now()
	o.until = began.Add(o.patience)
	r := &report{options: o, machine: readMachine(), began: began}
	r.note("the bridge between the hosts is a cable: no packet filter sees what crosses it")
	for _, v := range o.variants {
		if v != "default" && lookup("ethtool") == "" {
			r.note("%s left out: it needs ethtool", v)
			continue
		}
		if err := measureLink(ctx, o, v, r); err != nil {
			return err
		}
	}
	if o.relay {
		if err := measureRelay(ctx, o, r); err != nil {
			return err
		}
	}
	if o.benchmarks {
		if err := r.goBenchmarks(ctx); err != nil {
			return err
		}
	}
	r.took = time.Since(began)
	if o.out == "-" {
		return r.write(os.Stdout)
	}
	file, err := os.Create(o.out)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := r.write(file); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "written:", o.out)
	return file.Close()
}

// measureLink runs all rounds on one variant of the link.
func measureLink(ctx context.Context, o options, variant string, r *report) error {
	var all []*contestant
	defer func() {
		for _, c := range all {
			c.close()
		}
	}()
	for _, name := range o.contenders {
		c, err := start(ctx, o, variant, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, c)
		r.about(name, c.about)
	}
	tests := o.tests
	if variant != "default" {
		tests = []string{"tcp"}
	}
	stop := watchMemory(all)
	for round := 1; round <= o.rounds; round++ {
		for i, test := range tests {
			if test == "http" && lookup("wrk") == "" {
				r.note("HTTP left out: it needs wrk")
				continue
			}
			order := rotated(all, round+i)
			res, err := undisturbed(ctx, o, test, order)
			if err != nil {
				return err
			}
			res.variant, res.round = variant, round
			r.add(res)
		}
	}
	stop()
	for _, c := range all {
		if c.peak > 0 {
			r.memory = append(r.memory, memory{variant, c.name, c.peak, c.peakAll})
		}
	}
	return nil
}

// start makes a world for a contestant and starts it there.
func start(ctx context.Context, o options, variant, name string) (*contestant, error) {
	w, err := newWorld(ctx, variant, name)
	if err != nil {
		return nil, err
	}
	w.pilotctl = o.pilotctl
	c, err := starters[name](w)
	if err != nil {
		w.close()
		return nil, err
	}
	c.world, c.name = w, name
	return c, nil
}

// rotated returns the contestants in the order of a round.
func rotated(all []*contestant, n int) []*contestant {
	n %= len(all)
	return append(slices.Clone(all[n:]), all[:n]...)
}

// serveHTTP answers every request with one KiB.
func serveHTTP(address string) error {
	body := []byte(strings.Repeat("pilot...", 128))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("serving", l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Write(body)
	}))
}
