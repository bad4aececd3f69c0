package tasks

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/overlay/services/disk"
	"github.com/pilotnet/pilot/trust/crashtest"
)

func failingWork(dir string, plan int) error {
	var b *book
	return crashtest.Failing{
		Steps: crashTasks, Faults: 16,
		Open: func() (err error) {
			if b != nil {
				b.close()
			}
			if err := disk.MakeDir(filepath.Join(dir, "tasks")); err != nil {
				return err
			}
			b, err = crashBook(dir)
			return err
		},
		Do: func(i int) error {
			kept := b.put(crashRecord(i))
			if _, err := b.find("task00"); err != nil && !errors.Is(err, errNoTask) {
				return fmt.Errorf("reads do not go on: %w: %w", crashtest.ErrWrong, err)
			}
			if (kept == nil) != (b.db.Trouble() == nil) {
				return fmt.Errorf("%w: %v, but the trouble is %v", crashtest.ErrWrong, kept, b.db.Trouble())
			}
			return kept
		},
	}.Run(plan)
}

// failingCheck wants each task as it was last kept, or as it was to be kept after that
// when the disk failed.
func failingCheck(dir string, _ int, acked []int) error {
	if len(acked) == 0 {
		if err := disk.MakeDir(filepath.Join(dir, "tasks")); err != nil {
			return err
		}
	}
	b, err := crashBook(dir)
	if err != nil {
		return err
	}
	defer b.close()
	for task := range 20 {
		least, most := -1, -1
		for i := task; i < crashTasks; i += 20 {
			done, may := crashtest.Outcome(acked, i)
			if done {
				least = i
			}
			if may {
				most = i
			}
		}
		got, err := b.find(a2a.TaskID(fmt.Sprintf("task%02d", task)))
		if errors.Is(err, errNoTask) && least < 0 {
			continue
		}
		at := int(got.Updated.Unix()) - 1_700_000_000
		if err != nil || at < least || at > most || got.Log != crashRecord(at).Log {
			return fmt.Errorf("task %d is that of step %d, %v; want one from %d to %d", task, at, err, least, most)
		}
	}
	return b.put(crashRecord(0))
}

// TestHostileFailingDisk: single syncs and writes fail, and everything does for a while.
// After any restart or power failure the book can be opened and holds what was kept.
func TestHostileFailingDisk(t *testing.T) {
	crashtest.Test{Work: failingWork, Check: failingCheck, Syncs: crashTasks / 2, Changes: crashTasks, Seeds: 20, Hostile: 4_000, Plans: 16}.Run(t)
}
