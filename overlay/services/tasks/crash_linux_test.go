package tasks

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const crashTasks = 60

// crashRecord is what is kept in step i: 20 tasks, each of them three times.
func crashRecord(i int) Record {
	at := time.Unix(1_700_000_000+int64(i), 0).UTC()
	return Record{
		Peer: crypto.Fingerprint{byte(i % 20 % 3)}, Name: fmt.Sprint("peer", i%20%3), Created: at, Updated: at, Log: strings.Repeat("x", i*131%3000),
		Task: &a2a.Task{ID: a2a.TaskID(fmt.Sprintf("task%02d", i%20)), Status: a2a.TaskStatus{State: a2a.TaskStateCompleted, Timestamp: &at}},
	}
}

// TestHostilePowerFailure: whenever the power fails, the book can be opened and
// holds every task in the state in which it was last kept.
func TestHostilePowerFailure(t *testing.T) {
	crashtest.Test{Work: crashWork, Check: crashCheck, Syncs: crashTasks, Changes: 2 * crashTasks, Seeds: 30, Hostile: 2_000}.Run(t)
}

func crashBook(dir string) (*book, error) { return openBook(filepath.Join(dir, "tasks", "tasks.db")) }

func crashWork(dir string, _ int) error {
	if err := disk.MakeDir(filepath.Join(dir, "tasks")); err != nil {
		return err
	}
	b, err := crashBook(dir)
	if err != nil {
		return err
	}
	for i := range crashTasks {
		if err := b.put(crashRecord(i)); err != nil {
			return err
		}
		crashtest.Ack(i)
	}
	return b.close()
}

func crashCheck(dir string, _ int, acked []int) error {
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
	last := map[a2a.TaskID]Record{}
	for _, i := range acked {
		r := crashRecord(i)
		last[r.Task.ID] = r
	}
	for id, want := range last {
		got, err := b.find(id)
		if err != nil || got.Updated.Before(want.Updated) || got.Updated.Equal(want.Updated) && got.Log != want.Log {
			return fmt.Errorf("%s is %+v, %v; want at least %+v", id, got, err, want)
		}
	}
	return nil
}
