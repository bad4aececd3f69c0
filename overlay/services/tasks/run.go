package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/crypto"
)

// A run is a task at work. Its events are a log that subscribers read at their
// own pace, so that none of them holds it up. A task that was given out is never
// changed: changes are made to copies.
type run struct {
	info   a2a.TaskInfo
	peer   crypto.Fingerprint
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the end is kept

	mu     sync.Mutex
	rec    Record
	events []a2a.Event
	more   chan struct{} // closed when there are more events
}

func newRun(rec Record) *run {
	return &run{info: rec.Task.TaskInfo(), peer: rec.Peer, rec: rec, ended: make(chan struct{}), more: make(chan struct{})}
}

func (r *run) task() *a2a.Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Task
}

// record is the task as the owner sees it.
func (r *run) record() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec
}

// follow returns the task and how many events lie before it.
func (r *run) follow() (*a2a.Task, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Task, len(r.events)
}

// since returns the events from n on, and a channel that is closed when there are
// more.
func (r *run) since(n int) ([]a2a.Event, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[n:], r.more
}

// change replaces the task by a copy with a change, and tells subscribers.
func (r *run) change(event a2a.Event, change func(*a2a.Task)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.rec.Task
	next.Artifacts = slices.Clone(next.Artifacts)
	change(&next)
	r.rec.Task, r.rec.Updated = &next, time.Now()
	r.events = append(r.events, event)
	close(r.more)
	r.more = make(chan struct{})
}

const artifact = "output"

// write adds a text to the output.
func (r *run) write(text string) {
	first := len(r.task().Artifacts) == 0
	event := a2a.NewArtifactUpdateEvent(r.info, artifact, a2a.NewTextPart(text))
	event.Append = !first
	r.change(event, func(t *a2a.Task) {
		whole := text
		if !first {
			whole = t.Artifacts[0].Parts[0].Text() + text
		}
		t.Artifacts = []*a2a.Artifact{{ID: artifact, Parts: a2a.ContentParts{a2a.NewTextPart(whole)}}}
	})
}

// setData makes a value the output.
func (r *run) setData(v any) {
	event := a2a.NewArtifactUpdateEvent(r.info, artifact, a2a.NewDataPart(v))
	event.Append, event.LastChunk = false, true
	r.change(event, func(t *a2a.Task) { t.Artifacts = []*a2a.Artifact{event.Artifact} })
}

// settled is the record of the task at its end, which nobody is told yet.
func (r *run) settled(state a2a.TaskState, text, log string) Record {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, next := r.rec, *r.rec.Task
	next.Status = status(&next, state, now, text)
	rec.Task, rec.Updated, rec.Log = &next, now, log
	return rec
}

// finish makes the end of the task known.
func (r *run) finish(rec Record) {
	r.change(&a2a.TaskStatusUpdateEvent{TaskID: rec.Task.ID, ContextID: rec.Task.ContextID, Status: rec.Task.Status}, func(t *a2a.Task) {
		*t = *rec.Task
		r.rec.Log = rec.Log
	})
	close(r.ended)
}

// An output takes what a handler writes.
type output struct {
	run    *run
	format string
	most   int64
	over   func() // called once there is too much

	mu   sync.Mutex
	size int64
	rest []byte // not passed on yet
	tick *time.Timer
}

func newOutput(r *run, h Handler, over func()) *output {
	return &output{run: r, format: h.Format, most: h.MaxOutput, over: over}
}

// Write implements io.Writer. A text is passed on a moment later, so that a
// handler that writes letter by letter makes few events.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.size += int64(len(p)); o.size > o.most {
		o.over()
		return 0, errTooMuch
	}
	o.rest = append(o.rest, p...)
	if o.format == FormatText && o.tick == nil {
		o.tick = time.AfterFunc(flushEvery, func() { o.pass(false) })
	}
	return len(p), nil
}

// pass passes on whole characters; at the end, everything.
func (o *output) pass(all bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tick != nil {
		o.tick.Stop()
		o.tick = nil
	}
	n := len(o.rest)
	if !all {
		n = whole(o.rest)
	}
	if n == 0 {
		return
	}
	text := string(bytes.ToValidUTF8(o.rest[:n], []byte("\uFFFD")))
	o.rest = append([]byte(nil), o.rest[n:]...)
	o.run.write(text)
}

func (o *output) flush() { o.pass(true) }

// whole is the length of b without a character that may go on.
func whole(b []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return len(b) - i
			}
			break
		}
	}
	return len(b)
}

var errNotJSON = errors.New("the handler's output is not one JSON value")

// finish completes the output of a handler that succeeded.
func (o *output) finish() error {
	if o.format == FormatText {
		o.flush()
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(bytes.TrimSpace(o.rest)) == 0 {
		return nil
	}
	var v any
	if json.Unmarshal(o.rest, &v) != nil {
		return errNotJSON
	}
	o.run.setData(v)
	return nil
}
