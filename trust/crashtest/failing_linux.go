package crashtest

import (
	"errors"
	"fmt"
)

// ErrWrong is the error of a step of a Failing that found something wrong.
var ErrWrong = errors.New("this must not happen")

// Failing is the work of a program that keeps records on a disk which fails now and
// then, and goes on. In each step one sync or one write fails, counted up from step to
// step and from plan to plan, so that over as many plans as there are faults each of
// them meets each step; in the middle everything fails for a while. After some of the
// failures the program is started again.
//
// It acknowledges 0 when the program is there for the first time, and then each step:
// as done, or as one whose caller was told an error. Outcome reads that.
type Failing struct {
	Steps  int
	Faults int               // in a step: twice the most syncs or writes that one has
	Open   func() error      // closes what is open, and opens it anew
	Do     func(i int) error // a step; an error is what its caller is told
}

const deadSteps = 3 // in which everything fails

// Run runs in the traced process.
func (f Failing) Run(plan int) error {
	for fault := plan; ; fault += 7 {
		Fail(fault)
		err := f.Open()
		Heal()
		if err == nil {
			break
		}
		if fault > plan+1000 {
			return fmt.Errorf("crashtest: it cannot be opened: %w", err)
		}
	}
	Ack(0)
	failed := 0
	for i := range f.Steps {
		dead := i >= f.Steps/2 && i < f.Steps/2+deadSteps
		if dead {
			FailAll()
		} else {
			Fail((i + plan) % f.Faults)
		}
		err := f.Do(i)
		Heal()
		if err == nil {
			Ack(2*i + 2)
			if dead {
				return fmt.Errorf("crashtest: step %d: nothing could be written, and nobody was told", i)
			}
			continue
		}
		if errors.Is(err, ErrWrong) {
			return fmt.Errorf("crashtest: step %d: %w", i, err)
		}
		Ack(2*i + 3)
		if failed++; (failed+plan)%3 == 0 {
			if err := f.Open(); err != nil {
				return fmt.Errorf("crashtest: step %d failed, and then it cannot be opened: %w", i, err)
			}
		}
	}
	if failed < f.Steps/8 {
		return fmt.Errorf("crashtest: only %d of %d steps failed", failed, f.Steps)
	}
	return nil
}

// Outcome says whether step i of a Failing is done for certain, and whether anything
// of it may be there.
func Outcome(acked []int, i int) (done, may bool) {
	if i+1 < len(acked) {
		return acked[i+1]%2 == 0, true
	}
	return false, i+1 == len(acked)
}
