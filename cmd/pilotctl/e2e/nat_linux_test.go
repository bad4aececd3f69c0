package e2e_test

import (
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
)

// TestNATs measures pairs of NATs and events, and adds to natt/natlab/RESULTS.md
// what it does not have yet, so an interrupted measurement goes on where it
// ended. It runs with PILOT_NAT=1 only (make nat). PILOT_NAT_RUNS says how
// often at most a pair or event is measured, PILOT_NAT_ONLY which (a regular
// expression for the whole name), and PILOT_NAT_LABS how many at a time (2).
func TestNATs(t *testing.T) {
	if os.Getenv("PILOT_NAT") != "1" {
		t.Skip("measures for most of an hour; PILOT_NAT=1 runs it")
	}
	needLab(t)
	most, labs := numberFrom(t, "PILOT_NAT_RUNS", 1000), numberFrom(t, "PILOT_NAT_LABS", 2)
	only := ".*"
	if s := os.Getenv("PILOT_NAT_ONLY"); s != "" {
		only = s
	}
	wanted := regexp.MustCompile("^(?:" + only + ")$").MatchString
	p, results := &plans{t: t}, openResults(t)
	p.get(1)
	var jobs []func()
	for _, c := range cells() {
		if missing := min(c.runs, most) - results.count(c.name); missing > 0 && wanted(c.name) {
			jobs = append(jobs, func() {
				t.Run(c.name, func(t *testing.T) {
					var runs []pairRun
					defer func() { results.addPair(t, c, runs) }()
					c.run(t, p, missing, func(r pairRun) { runs = append(runs, r) })
				})
			})
		}
	}
	for _, e := range natEvents {
		if !wanted(e.name) {
			continue
		}
		for range min(eventRuns, most) - results.countEvent(e.name) {
			jobs = append(jobs, func() {
				t.Run(e.name, func(t *testing.T) { results.addEvent(t, e.name, e.run(t, p)) })
			})
		}
	}
	work(jobs, labs)
}

// eventRuns is how often each event is measured.
const eventRuns = 5

// work does the jobs, so many at a time.
func work(jobs []func(), workers int) {
	queue := make(chan func(), len(jobs))
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for j := range queue {
				j()
			}
		})
	}
	all.Wait()
}

func numberFrom(t *testing.T, name string, usual int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
