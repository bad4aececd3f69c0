package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// answeredFile holds, 8 bytes each, the beginnings of the MACs of the INITs that
// were answered; when it is full it becomes answeredFile + ".old".
const answeredFile = "handshakes"

const answeredMax = 1 << 17 // records a file: 1 MiB

// An answerLog remembers over restarts which INITs were answered, so that one that
// was recorded on the way draws no second answer after a restart either. A record
// is written before its RESP leaves, so it survives the death of the process; one
// of the last minute may be lost with the power. What this run answered is known
// to the guards of the links.
type answerLog struct {
	path    string
	file    *os.File
	full    []*os.File // files that file took the place of, since the last sync
	records int        // in file
	dirty   bool       // since the last sync
	renamed bool       // since the last sync: the names are not durable
	old     []uint64   // of earlier runs, sorted
}

// openAnswerLog reads what earlier runs answered. A file that is cut is used as far
// as it goes.
func openAnswerLog(dir string) (*answerLog, error) {
	a := &answerLog{path: filepath.Join(dir, answeredFile)}
	for _, path := range []string{a.path + ".old", a.path} {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("overlay: answered handshakes: %w", err)
		}
		a.records = min(len(b)/8, answeredMax)
		for i := range a.records {
			a.old = append(a.old, binary.BigEndian.Uint64(b[8*i:]))
		}
	}
	slices.Sort(a.old)
	if err := a.open(os.O_RDWR); err != nil {
		return nil, err
	}
	return a, nil
}

// open opens the file for records to come, at the end of the whole ones in it.
func (a *answerLog) open(flag int) error {
	f, err := os.OpenFile(a.path, flag|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("overlay: answered handshakes: %w", err)
	}
	a.file, a.renamed = f, true
	return nil
}

// before reports whether an earlier run answered this INIT.
func (a *answerLog) before(mac [16]byte) bool {
	_, found := slices.BinarySearch(a.old, binary.BigEndian.Uint64(mac[:]))
	return found
}

// note records that the INIT is about to be answered.
func (a *answerLog) note(mac [16]byte) error {
	if a.records == answeredMax {
		if err := a.rotate(); err != nil {
			return err
		}
	}
	if _, err := a.file.WriteAt(mac[:8], int64(a.records)*8); err != nil {
		return fmt.Errorf("overlay: answered handshakes: %w", err)
	}
	a.records++
	a.dirty = true
	return nil
}

func (a *answerLog) rotate() error {
	if err := os.Rename(a.path, a.path+".old"); err != nil {
		return fmt.Errorf("overlay: answered handshakes: %w", err)
	}
	full := a.file
	if err := a.open(os.O_RDWR | os.O_TRUNC); err != nil {
		return err
	}
	a.full, a.records = append(a.full, full), 0
	return nil
}

// sync returns a job that makes the records durable, nil when they are. The job
// may run beside note.
func (a *answerLog) sync() func() error {
	if !a.dirty {
		return nil
	}
	f, full, renamed, dir := a.file, a.full, a.renamed, filepath.Dir(a.path)
	a.dirty, a.renamed, a.full = false, false, nil
	return func() error {
		err := f.Sync()
		for _, f := range full {
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if renamed {
			err = errors.Join(err, disk.SyncDir(dir))
		}
		if err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("overlay: answered handshakes: %w", err)
		}
		return nil
	}
}

func (a *answerLog) close() error {
	err := a.file.Close()
	for _, f := range a.full {
		err = errors.Join(err, f.Close())
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
