package e2e_test

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestNATs measures pairs of NATs and events, and adds to natt/natlab/RESULTS.md
// what it does not have yet, so an interrupted measurement goes on where it
// ended. It runs with PILOT_NAT=1 only (make nat). PILOT_NAT_RUNS says how
// often at most a pair or event is measured, PILOT_NAT_ONLY which (a regular
// expression for the whole name), PILOT_NAT_LABS how many at a time (2), and
// PILOT_NAT_RATE how many packets a second each side sends during an event (1000).
func TestNATs(t *testing.T) {
	if os.Getenv("PILOT_NAT") != "1" {
		t.Skip("measures for most of an hour; PILOT_NAT=1 runs it")
	}
	needLab(t)
	most, labs := numberFrom(t, "PILOT_NAT_RUNS", 1000), numberFrom(t, "PILOT_NAT_LABS", 2)
	rate := numberFrom(t, "PILOT_NAT_RATE", fullRate)
	only := ".*"
	if s := os.Getenv("PILOT_NAT_ONLY"); s != "" {
		only = s
	}
	wanted := regexp.MustCompile("^(?:" + only + ")$").MatchString
	p, results := &plans{t: t}, openResults(t)
	p.get(1)
	p.get(2)
	pairs := func(runs int) (jobs []func()) {
		for _, c := range cells() {
			if wanted(c.name) {
				jobs = append(jobs, func() { c.add(t, p, results, min(c.runs, most, runs)) })
			}
		}
		return jobs
	}
	events := func(idle bool) (jobs []func()) {
		for _, e := range natEvents {
			for k := results.countEvent(e.name); k < min(eventRuns, most); k++ {
				if wanted(e.name) && e.idle == idle {
					jobs = append(jobs, func() {
						t.Run(e.name, func(t *testing.T) { results.addEvent(t, e.name, e.run(t, p, rate)) })
					})
				}
			}
		}
		return jobs
	}
	// The labs in which nothing happens do not disturb the others.
	var quiet sync.WaitGroup
	quiet.Go(func() { jobs := events(true); work(jobs, len(jobs)) })
	// Everything some times before anything many times, should time run out.
	work(pairs(fewRuns), labs)
	work(events(false), min(labs, 2)) // they send twice as much
	work(pairs(manyRuns), labs)
	quiet.Wait()
	results.write(t) // the summary may have changed
}

// add measures a cell until it has that many runs.
func (c cell) add(t *testing.T, p *plans, results *natResults, want int) {
	missing := want - results.count(c.name)
	if missing <= 0 {
		return
	}
	t.Run(c.name, func(t *testing.T) {
		var runs []pairRun
		defer func() { results.addPair(t, c, runs) }()
		c.run(t, p, missing, func(r pairRun) { runs = append(runs, r) })
	})
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

// TestPairsOfNATs: one pair of each row of the table reaches each other at once,
// and directly where that is possible.
func TestPairsOfNATs(t *testing.T) {
	needLab(t)
	t.Parallel()
	p := &plans{t: t}
	p.get(1)
	var jobs []func()
	for _, c := range cells() {
		if c.name == c.row.many {
			jobs = append(jobs, func() { t.Run(c.name, func(t *testing.T) { c.check(t, p) }) })
		}
	}
	if len(jobs) != len(rows) {
		t.Errorf("%d pairs for %d rows", len(jobs), len(rows))
	}
	work(jobs, 2)
}

// check gives a pair that is direct by luck three chances, others one.
func (c cell) check(t *testing.T, p *plans) {
	m := newMeeting(t, p.get(1), c.hosts, c.kinds, c.env...)
	m.rate = testRate
	for n := range 3 {
		r := c.measure(t, m, n)
		t.Logf("%s: %v", c.name, r)
		switch {
		case r.first == 0:
			t.Fatal("not reached")
		case r.direct == 0 && c.row.p50 > 0 && (n == 2 || c.row.rate == 100):
			t.Fatal("not direct")
		case r.direct > 0 || c.row.p50 == 0:
			return
		}
	}
}

// testRate spares machines that have other tests to run.
const testRate = 250

// TestEventsBetweenNATs: what happens to two agents while they talk costs them
// not much more than the goals.
func TestEventsBetweenNATs(t *testing.T) {
	needLab(t)
	t.Parallel()
	p := &plans{t: t}
	p.get(1)
	p.get(2)
	var jobs []func()
	for _, e := range natEvents {
		if !e.slow {
			jobs = append(jobs, func() { t.Run(e.name, func(t *testing.T) { e.check(t, p) }) })
		}
	}
	work(jobs, 3)
}

// check wants pauses of at most three times the goal and a second, since the
// machine may be busy with other tests.
func (e natEvent) check(t *testing.T, p *plans) {
	for _, v := range e.run(t, p, testRate) {
		goal, ok := e.goals[v.name]
		if ok && strings.HasSuffix(v.name, "(ms)") && v.value > 3*goal+1000 {
			t.Errorf("%v", v)
		}
		if v.name == twiceName && v.value > 0 {
			t.Errorf("%v", v)
		}
	}
}
