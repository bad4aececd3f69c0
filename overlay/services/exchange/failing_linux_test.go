package exchange

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/pilotnet/pilot/trust/crashtest"
)

func failingWork(dir string, plan int) error {
	var x *Exchange
	return crashtest.Failing{
		Steps: crashItems, Faults: 14,
		Open: func() (err error) {
			if x != nil {
				x.Close()
			}
			x, err = New(Config{Dir: dir})
			return err
		},
		Do: func(i int) error { return crashStep(x, i) },
	}.Run(plan)
}

// failingFind opens what came in step i.
func failingFind(x *Exchange, b *box, i int) (f *os.File, at int64, err error) {
	err = fmt.Errorf("is not there")
	switch i % 4 {
	case 0:
		for _, it := range x.queue.List() {
			if it.Name == fmt.Sprint("out", i) {
				f, err = x.queue.Open(it.ID)
			}
		}
	case 1:
		for _, m := range b.messages() {
			if m.Time.Unix() == int64(i) {
				f, _, at, err = b.openMessage(m.Name)
			}
		}
	case 2:
		f, _, err = b.files.open(fmt.Sprint("in", i))
	case 3:
		f, _, err = b.files.open("latest")
	}
	return f, at, err
}

func failingCheck(dir string, acked []int) error {
	x, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	defer x.Close()
	b, err := x.box(crashPeer)
	if err != nil {
		return err
	}
	latest, could := -1, map[string]bool{}
	for i := range crashItems {
		done, may := crashtest.Outcome(acked, i)
		if i%4 == 3 {
			if done {
				latest, could = i, map[string]bool{}
			}
			if may {
				could[string(crashBody(i))] = true
			}
			continue
		}
		f, at, err := failingFind(x, b, i)
		if err != nil && !done {
			continue
		}
		if err == nil && !may {
			err = errors.New("nobody sent it")
		}
		if err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		got, err := io.ReadAll(io.NewSectionReader(f, at, 1<<20))
		f.Close()
		if err != nil || !bytes.Equal(got, crashBody(i)) {
			return fmt.Errorf("item %d is %q, %v", i, got, err)
		}
	}
	f, _, err := failingFind(x, b, 3)
	if err != nil {
		if latest >= 0 {
			return fmt.Errorf("the file that was replaced last in step %d: %w", latest, err)
		}
		return nil
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !could[string(got)] {
		return fmt.Errorf("the file that was replaced last in step %d is %q, %v", latest, got, err)
	}
	return nil
}

// TestHostileFailingDisk: single syncs and writes fail, and everything does for a while.
// After any restart or power failure the directory can be opened and holds, whole, what
// its senders were told that is here.
func TestHostileFailingDisk(t *testing.T) {
	crashtest.Test{
		Work:  func(dir string, plan int) error { return failingWork(filepath.Join(dir, "exchange"), plan) },
		Check: func(dir string, _ int, acked []int) error { return failingCheck(filepath.Join(dir, "exchange"), acked) },
		Syncs: crashItems, Changes: crashItems, Seeds: 20, Hostile: 4_000, Plans: 14,
	}.Run(t)
}
