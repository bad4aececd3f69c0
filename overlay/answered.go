package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// answeredFiles hold, 8 bytes each, the beginnings of the MACs of the INITs that were
// answered. They take turns: when one is full, the other is emptied. So no file ever
// changes its name, and a power failure finds all that was synced under both.
var answeredFiles = [2]string{"handshakes", "handshakes.old"}

const answeredMax = 1 << 17 // records a file: 1 MiB

// An answerLog remembers over restarts which INITs were answered, so that one that
// was recorded on the way draws no second answer after a restart either. A record
// is written before its RESP leaves, so it survives the death of the process; one
// of the last minute may be lost with the power. What this run answered is known
// to the guards of the links.
type answerLog struct {
	dir     string
	files   [2]*os.File
	turn    int      // which file takes records
	records int      // in that file
	dirty   [2]bool  // since the last sync
	created bool     // since the last sync: the names are not durable
	old     []uint64 // of earlier runs, sorted

	mu      sync.Mutex // held while files are emptied or written again
	lost    [2]bool    // a sync failed: what was written has to be written again
	unnamed bool       // that of the directory did
}

// openAnswerLog reads what earlier runs answered. A file that is cut is used as far
// as it goes.
func openAnswerLog(dir string) (*answerLog, error) {
	// Syncs of an earlier run may have failed.
	a := &answerLog{dir: dir, created: true, lost: [2]bool{true, true}}
	var records [2]int
	var changed [2]time.Time
	for i, name := range answeredFiles {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("overlay: answered handshakes: %w", err), a.close())
		}
		a.files[i] = f
		b, err := io.ReadAll(f)
		info, statErr := f.Stat()
		if err = errors.Join(err, statErr); err != nil {
			return nil, errors.Join(fmt.Errorf("overlay: answered handshakes: %w", err), a.close())
		}
		records[i], changed[i] = min(len(b)/8, answeredMax), info.ModTime()
		for j := range records[i] {
			a.old = append(a.old, binary.BigEndian.Uint64(b[8*j:]))
		}
	}
	slices.Sort(a.old)
	// The turn is that of the file with room; of two full ones, that of the newer one,
	// so that the next record empties the older one.
	if records[0] == answeredMax && (records[1] < answeredMax || changed[1].After(changed[0])) {
		a.turn = 1
	}
	a.records = records[a.turn]
	return a, nil
}

// before reports whether an earlier run answered this INIT.
func (a *answerLog) before(mac [16]byte) bool {
	_, found := slices.BinarySearch(a.old, binary.BigEndian.Uint64(mac[:]))
	return found
}

// note records that the INIT is about to be answered.
func (a *answerLog) note(mac [16]byte) error {
	if a.records == answeredMax {
		a.mu.Lock()
		err := a.files[1-a.turn].Truncate(0)
		a.mu.Unlock()
		if err != nil {
			return fmt.Errorf("overlay: answered handshakes: %w", err)
		}
		a.turn, a.records = 1-a.turn, 0
	}
	if _, err := a.files[a.turn].WriteAt(mac[:8], int64(a.records)*8); err != nil {
		return fmt.Errorf("overlay: answered handshakes: %w", err)
	}
	a.records++
	a.dirty[a.turn] = true
	return nil
}

// sync returns a job that makes the records durable, nil when they are. The job
// may run beside note.
func (a *answerLog) sync() func() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	dirty, created := a.dirty, a.created || a.unnamed
	for i, lost := range a.lost {
		dirty[i] = dirty[i] || lost
	}
	if dirty == [2]bool{} && !created {
		return nil
	}
	a.dirty, a.created = [2]bool{}, false
	return func() error {
		a.mu.Lock()
		lost := a.lost
		a.mu.Unlock()
		var failed [2]bool
		var errs []error
		for i, f := range a.files {
			if !dirty[i] {
				continue
			}
			var err error
			if lost[i] {
				err = a.writeAgain(f)
			}
			if err == nil {
				err = f.Sync()
			}
			failed[i] = err != nil
			errs = append(errs, err)
		}
		unnamed := false
		if created {
			err := disk.SyncDir(a.dir)
			unnamed = err != nil
			errs = append(errs, err)
		}
		a.mu.Lock()
		a.lost, a.unnamed = failed, unnamed
		a.mu.Unlock()
		if err := errors.Join(errs...); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("overlay: answered handshakes: %w", err)
		}
		return nil
	}
}

// writeAgain writes the records of a file once more: after a sync that failed the kernel
// takes them for written, and a later sync says nothing about them. New ones come at the
// end meanwhile.
func (a *answerLog) writeAgain(f *os.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, answeredMax*8))
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	return err
}

func (a *answerLog) close() error {
	var err error
	for _, f := range a.files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// noteAnswer remembers an INIT that is about to be answered. Without a disk the
// answer is given all the same: the guard remembers it as long as this run lasts.
func (l *loop) noteAnswer(init []byte) {
	if err := l.answered.note(crypto.InitMAC(init)); err != nil && !l.forgetful {
		l.forgetful = true
		l.log.Warn("cannot remember answered handshakes over a restart", "err", err)
	}
}

func (l *loop) syncAnswers() {
	if job := l.answered.sync(); job != nil {
		l.write(job)
	}
}
