package exchange

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const crashItems = 30

var crashPeer = crypto.Fingerprint{7}

// crashBody is what comes in step i. Steps take turns: a file to send, a file that
// arrives, a message that does, a file that arrives in place of an older one.
func crashBody(i int) []byte { return fmt.Append(make([]byte, i*211%3000), "item ", i) }

func crashStep(x *Exchange, i int) error {
	body := crashBody(i)
	if i%4 == 0 {
		_, err := x.queue.Put(crashPeer, fmt.Sprint("out", i), bytes.NewReader(body))
		return err
	}
	b, err := x.box(crashPeer)
	if err != nil {
		return err
	}
	if i%4 == 1 {
		_, err := b.keepMessage(messageHead{Type: "text/plain", Size: int64(len(body)), Received: time.Unix(int64(i), 0)}, body)
		return err
	}
	f, temp, err := x.temp()
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	name, cond := fmt.Sprint("in", i), condition{}
	if i%4 == 3 {
		name, cond = "latest", condition{match: "*"}
		if _, there := b.files.entry(name); !there {
			cond = condition{}
		}
	}
	_, err = b.files.put(temp, name, "text/csv", sha256.Sum256(body), cond, func(int64, int) {})
	return err
}

// crashCheck looks for all that was acknowledged.
func crashCheck(dir string, acked []int) error {
	x, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	defer x.Close()
	if len(acked) == 0 {
		return nil
	}
	b, err := x.box(crashPeer)
	if err != nil {
		return err
	}
	queued, messages := x.queue.List(), b.messages()
	for _, i := range acked {
		var f *os.File
		var at int64
		err := fmt.Errorf("is not there")
		switch i % 4 {
		case 0:
			for _, it := range queued {
				if it.Name == fmt.Sprint("out", i) {
					f, err = x.queue.Open(it.ID)
				}
			}
		case 1:
			for _, m := range messages {
				if m.Time.Unix() == int64(i) {
					f, _, at, err = b.openMessage(m.Name)
				}
			}
		case 2:
			f, _, err = b.files.open(fmt.Sprint("in", i))
		case 3:
			f, _, err = b.files.open("latest")
			if last := acked[len(acked)-1]; err == nil && i+4 <= last+1 {
				f.Close()
				continue // replaced, or being replaced
			}
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
	return nil
}

// TestHostilePowerFailure: whenever the power fails, the directory can be opened
// and holds, whole, every file and message whose sender was told that it is here,
// and every file that was taken to be sent.
func TestHostilePowerFailure(t *testing.T) {
	crashtest.Test{
		Work:  func(dir string, _ int) error { return crashWork(filepath.Join(dir, "exchange")) },
		Check: func(dir string, _ int, acked []int) error { return crashCheck(filepath.Join(dir, "exchange"), acked) },
		Syncs: 2 * crashItems, Changes: 3 * crashItems, Seeds: 30, Hostile: 2_000,
	}.Run(t)
}

func crashWork(dir string) error {
	x, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	for i := range crashItems {
		if err := crashStep(x, i); err != nil {
			return err
		}
		crashtest.Ack(i)
	}
	return x.Close()
}
