package crashtest

import (
	"os"
	"testing"
)

// A Test is a program that keeps files, and what must be true of them after the
// power failed.
type Test struct {
	// Work runs in the traced process and calls Ack. Plan tells one of several
	// courses that it can take.
	Work func(dir string, plan int) error
	// Check opens what a failure left. What was acknowledged must be there.
	Check func(dir string, plan int, acked []int) error

	Syncs, Changes int // that a record has at least: else nothing was seen
	Seeds          int // power failures in an ordinary run, of the first plan
	Hostile        int // with PILOT_HOSTILE=1
	Plans          int // with PILOT_HOSTILE=1, which share the failures; 0: one
}

// Run runs the test, in parallel with others. The calling test has nothing else in
// it: the traced process begins there, too.
func (c Test) Run(t *testing.T) {
	if dir := Dir(); dir != "" {
		if err := c.Work(dir, Arg()); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Parallel()
	seeds, plans := c.Seeds, 1
	if os.Getenv("PILOT_HOSTILE") == "1" {
		seeds, plans = c.Hostile, max(c.Plans, 1)
	}
	for plan := range plans {
		log := Record(t, plan)
		syncs, changes := log.Syncs()
		if syncs < c.Syncs || changes < c.Changes {
			t.Fatalf("only %d syncs and %d changes were seen", syncs, changes)
		}
		log.Crash(t, plan*seeds, seeds/plans, func(dir string, acked []int) error { return c.Check(dir, plan, acked) })
		t.Logf("plan %d: %d changes, %d syncs, %d power failures", plan, changes, syncs, seeds/plans)
	}
}
