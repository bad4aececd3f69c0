package tasks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// Port is the well-known port of tasks.
const Port = 1003

// Limits; see the package comment.
const (
	maxMessage    = 1 << 20
	maxPeerAtWork = 4
	maxAtWork     = 16
	maxRequests   = 64

	usualOutput = 1 << 20
	mostOutput  = 4 << 20
	usualTime   = 10 * time.Minute
	mostTime    = 24 * time.Hour
	flushEvery  = 200 * time.Millisecond
)

// Texts that a peer may see.
const (
	textNoHandler   = "this agent takes no tasks: its owner has set no handler"
	textInterrupted = "interrupted: the agent stopped while the handler was at work; it is not known how far it came"
	textCanceled    = "canceled"
)

// Config says how Tasks works. Dir is required.
type Config struct {
	Dir    string       // holds everything; made when it is not there
	Logger *slog.Logger // nil: for nobody
}

// Tasks holds the tasks of all peers and runs their handler.
type Tasks struct {
	book   *book
	logger *slog.Logger
	ctx    context.Context // of all handlers
	stop   context.CancelCauseFunc

	mu       sync.Mutex
	handler  *Handler
	runs     map[a2a.TaskID]*run
	atWork   map[crypto.Fingerprint]int
	requests map[crypto.Fingerprint]int
	closed   bool
	running  sync.WaitGroup
}

// Why a handler is stopped before it ends.
var (
	errStopped  = errors.New("the agent stops")
	errCanceled = errors.New("canceled")
	errTooLong  = errors.New("the time limit")
	errTooMuch  = errors.New("the output limit")
)

// New opens the directory. The caller makes sure that no other process does.
func New(c Config) (*Tasks, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := disk.MakeDir(c.Dir); err != nil {
		return nil, fmt.Errorf("tasks: %w", err)
	}
	b, err := openBook(filepath.Join(c.Dir, "tasks.db"))
	if err != nil {
		return nil, err
	}
	n, err := b.interrupt(time.Now())
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	if n > 0 {
		c.Logger.Warn("tasks were interrupted by the last end of this agent; they are marked as failed", "tasks", n)
	}
	h, err := b.handler()
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	t := &Tasks{book: b, logger: c.Logger, handler: h, runs: map[a2a.TaskID]*run{}, atWork: map[crypto.Fingerprint]int{}, requests: map[crypto.Fingerprint]int{}}
	t.ctx, t.stop = context.WithCancelCause(context.Background())
	return t, nil
}

// Close stops all handlers, keeps what became of their tasks and closes the
// directory.
func (t *Tasks) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.stop(errStopped)
	t.running.Wait()
	return t.book.close()
}

// Handler is the handler; nil: there is none.
func (t *Tasks) Handler() *Handler {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.handler
}

// SetHandler sets the handler for tasks to come; nil: none.
func (t *Tasks) SetHandler(h *Handler) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.book.setHandler(h); err != nil {
		return err
	}
	t.handler = h
	return nil
}

// start begins the task of a message, or makes one that is rejected: then the run
// has ended already.
func (t *Tasks) start(peer services.Peer, m *a2a.Message) (*run, error) {
	now := time.Now()
	task := &a2a.Task{ID: a2a.NewTaskID(), ContextID: m.ContextID, History: []*a2a.Message{m}}
	if task.ContextID == "" {
		task.ContextID = a2a.NewContextID()
	}
	m.TaskID, m.ContextID = task.ID, task.ContextID
	r := newRun(Record{Peer: peer.Fingerprint, Name: peer.Name, Created: now, Updated: now, Task: task})
	ctx, cancel := context.WithCancelCause(t.ctx)
	r.cancel = cancel
	h, err := t.admit(peer, r)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if h == nil {
		cancel(nil)
		task.Status = status(task, a2a.TaskStateRejected, now, textNoHandler)
		close(r.ended)
		return r, nil
	}
	in, err := h.input(peer, m)
	if err == nil {
		task.Status = status(task, a2a.TaskStateWorking, now, "")
		if err = t.book.put(r.record()); err != nil {
			t.logger.Error("a task cannot be kept", "peer", peer.Name, "err", err)
			err = unkept(err)
		}
	}
	if err != nil {
		t.leave(r)
		t.running.Done()
		cancel(nil)
		return nil, err
	}
	go func() {
		defer t.running.Done()
		defer cancel(nil)
		t.work(ctx, r, *h, peer, in)
	}()
	return r, nil
}

// admit counts a run in. The handler is nil where there is none.
func (t *Tasks) admit(peer services.Peer, r *run) (*Handler, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, a2a.NewError(a2a.ErrServerError, "the agent is stopping; try again later")
	case t.handler == nil:
		return nil, nil
	case t.atWork[peer.Fingerprint] >= maxPeerAtWork:
		return nil, a2a.NewError(a2a.ErrServerError, fmt.Sprintf("%d tasks of yours are at work, which is the limit; try again when one has ended", maxPeerAtWork))
	case len(t.runs) >= maxAtWork:
		return nil, a2a.NewError(a2a.ErrServerError, fmt.Sprintf("%d tasks are at work, which is the limit; try again later", maxAtWork))
	}
	t.atWork[peer.Fingerprint]++
	t.runs[r.info.TaskID] = r
	t.running.Add(1)
	return t.handler, nil
}

func (t *Tasks) leave(r *run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.runs, r.info.TaskID)
	if t.atWork[r.peer]--; t.atWork[r.peer] <= 0 {
		delete(t.atWork, r.peer)
	}
}

// work runs the handler and keeps what comes of it.
func (t *Tasks) work(ctx context.Context, r *run, h Handler, peer services.Peer, in []byte) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.TimeLimit, errTooLong)
	defer cancel()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	out := newOutput(r, h, func() { cut(errTooMuch) })
	log, err := h.run(ctx, call{peer: peer, task: r.info.TaskID, context: r.info.ContextID, in: in}, out)
	state, text := outcome(ctx, h, err)
	if state == a2a.TaskStateCompleted {
		if err := out.finish(); err != nil {
			state, text = a2a.TaskStateFailed, err.Error()
		}
	} else if h.Format == FormatText {
		out.flush()
	}
	if state == a2a.TaskStateFailed {
		t.logger.Info("a task failed", "task", r.info.TaskID, "peer", peer.Name, "why", text)
	}
	rec := r.settled(state, text, log)
	if err := t.book.put(rec); err != nil {
		t.logger.Error("cannot keep the end of a task", "task", rec.Task.ID, "err", err)
		rec = r.settled(a2a.TaskStateFailed, "the agent could not keep what came of the task", log)
	}
	t.leave(r)
	r.finish(rec)
}

// outcome says what became of a task in words for the peer. A handler that was told
// to stop may end as if all were well.
func outcome(ctx context.Context, h Handler, err error) (a2a.TaskState, string) {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errCanceled):
		return a2a.TaskStateCanceled, textCanceled
	case errors.Is(cause, errStopped):
		return a2a.TaskStateFailed, textInterrupted
	case errors.Is(cause, errTooLong):
		return a2a.TaskStateFailed, fmt.Sprintf("the handler did not end within its time limit of %s", h.TimeLimit)
	case errors.Is(cause, errTooMuch):
		return a2a.TaskStateFailed, fmt.Sprintf("the handler wrote more than its limit of %d bytes", h.MaxOutput)
	case err == nil:
		return a2a.TaskStateCompleted, ""
	}
	return a2a.TaskStateFailed, err.Error()
}

// look finds a task of a peer, at work or kept.
func (t *Tasks) look(peer crypto.Fingerprint, id a2a.TaskID) (*a2a.Task, *run, error) {
	t.mu.Lock()
	r := t.runs[id]
	t.mu.Unlock()
	if r != nil && r.peer == peer {
		return r.task(), r, nil
	}
	rec, err := t.book.get(peer, id)
	if err != nil {
		return nil, nil, err
	}
	return rec.Task, nil, nil
}

// live is a kept record as it is now, if its task is at work. It does not use the
// book, which may be in the middle of a transaction: one in another could wait
// for ever.
func (t *Tasks) live(rec Record) Record {
	t.mu.Lock()
	r := t.runs[rec.Task.ID]
	t.mu.Unlock()
	if r == nil {
		return rec
	}
	return r.record()
}

// cancelTask ends a task that is at work, and waits until that is kept.
func (t *Tasks) cancelTask(ctx context.Context, r *run) (*a2a.Task, error) {
	r.cancel(errCanceled)
	select {
	case <-r.ended:
		return r.task(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// status makes the state of a task; a text is said by the agent.
func status(task *a2a.Task, state a2a.TaskState, now time.Time, text string) a2a.TaskStatus {
	s := a2a.TaskStatus{State: state, Timestamp: &now}
	if text != "" {
		s.Message = a2a.NewMessageForTask(a2a.MessageRoleAgent, task, a2a.NewTextPart(text))
	}
	return s
}
