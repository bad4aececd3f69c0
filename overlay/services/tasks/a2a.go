package tasks

import (
	"context"
	"errors"
	"iter"
	"regexp"
	"slices"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2asrv"

	"github.com/pilotnet/pilot/overlay/services"
)

// A desk answers the calls of A2A. Who calls is in the context.
type desk struct{ *Tasks }

var _ a2asrv.RequestHandler = desk{}

type peerKey struct{}

func withPeer(ctx context.Context, p services.Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(ctx context.Context) (services.Peer, error) {
	p, ok := ctx.Value(peerKey{}).(services.Peer)
	if !ok {
		return p, a2a.ErrUnauthenticated
	}
	return p, nil
}

var contextID = regexp.MustCompile(`^[A-Za-z0-9._:@-]{0,128}$`)

// send checks a message and begins its task.
func (d desk) send(ctx context.Context, req *a2a.SendMessageRequest) (*run, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	invalid := func(text string) (*run, error) { return nil, a2a.NewError(a2a.ErrInvalidParams, text) }
	switch {
	case req == nil || req.Message == nil:
		return invalid("there is no message")
	case req.Message.ID == "" || len(req.Message.ID) > 128:
		return invalid("a message needs an ID of at most 128 bytes")
	case len(req.Message.Parts) == 0 || slices.Contains(req.Message.Parts, nil):
		return invalid("a message needs parts")
	case req.Message.Role != a2a.MessageRoleUser:
		return invalid("the role of a message is that of the user")
	case !contextID.MatchString(req.Message.ContextID):
		return invalid("a context ID has at most 128 letters, digits and . _ : @ -")
	case req.Config != nil && req.Config.PushConfig != nil:
		return nil, a2a.ErrPushNotificationNotSupported
	}
	if id := req.Message.TaskID; id != "" {
		if _, _, err := d.look(peer.Fingerprint, id); err != nil {
			return nil, notFound(err)
		}
		return nil, a2a.NewError(a2a.ErrUnsupportedOperation, "a task takes one message; send another with the same contextId and no taskId")
	}
	return d.start(peer, req.Message)
}

func notFound(err error) error {
	if errors.Is(err, errNoTask) {
		return a2a.ErrTaskNotFound
	}
	return err
}

// SendMessage implements a2asrv.RequestHandler.
func (d desk) SendMessage(ctx context.Context, req *a2a.SendMessageRequest) (a2a.SendMessageResult, error) {
	r, err := d.send(ctx, req)
	if err != nil {
		return nil, err
	}
	var history *int
	if req.Config != nil {
		history = req.Config.HistoryLength
		if req.Config.ReturnImmediately {
			return shorten(r.task(), history), nil
		}
	}
	select {
	case <-r.ended:
		return shorten(r.task(), history), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SendStreamingMessage implements a2asrv.RequestHandler.
func (d desk) SendStreamingMessage(ctx context.Context, req *a2a.SendMessageRequest) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		r, err := d.send(ctx, req)
		if err != nil {
			yield(nil, err)
			return
		}
		stream(ctx, r, yield)
	}
}

// SubscribeToTask implements a2asrv.RequestHandler. Of a task that has ended it
// gives the end.
func (d desk) SubscribeToTask(ctx context.Context, req *a2a.SubscribeToTaskRequest) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		task, r, err := d.find(ctx, req.ID)
		switch {
		case err != nil:
			yield(nil, err)
		case r == nil:
			yield(task, nil)
		default:
			stream(ctx, r, yield)
		}
	}
}

// stream yields the task and what happens to it from then on.
func stream(ctx context.Context, r *run, yield func(a2a.Event, error) bool) {
	task, n := r.follow()
	if !yield(task, nil) || task.Status.State.Terminal() {
		return
	}
	for {
		events, more := r.since(n)
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
			if s, ok := e.(*a2a.TaskStatusUpdateEvent); ok && s.Status.State.Terminal() {
				return
			}
		}
		n += len(events)
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

// find is look for the caller.
func (d desk) find(ctx context.Context, id a2a.TaskID) (*a2a.Task, *run, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, nil, err
	}
	task, r, err := d.look(peer.Fingerprint, id)
	return task, r, notFound(err)
}

// GetTask implements a2asrv.RequestHandler.
func (d desk) GetTask(ctx context.Context, req *a2a.GetTaskRequest) (*a2a.Task, error) {
	task, _, err := d.find(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return shorten(task, req.HistoryLength), nil
}

// CancelTask implements a2asrv.RequestHandler.
func (d desk) CancelTask(ctx context.Context, req *a2a.CancelTaskRequest) (*a2a.Task, error) {
	task, r, err := d.find(ctx, req.ID)
	switch {
	case err != nil:
		return nil, err
	case r != nil:
		return d.cancelTask(ctx, r)
	case task.Status.State == a2a.TaskStateCanceled:
		return task, nil
	}
	return nil, a2a.NewError(a2a.ErrTaskNotCancelable, "the task has ended already: "+word(task.Status.State))
}

const usualPage, mostPage = 50, 100

// ListTasks implements a2asrv.RequestHandler. The token of a page is the ID of the
// last task before it.
func (d desk) ListTasks(ctx context.Context, req *a2a.ListTasksRequest) (*a2a.ListTasksResponse, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	size := req.PageSize
	if size == 0 {
		size = usualPage
	}
	if size < 1 || size > mostPage || len(req.PageToken) > 128 {
		return nil, a2a.NewError(a2a.ErrInvalidParams, "a page has 1 to 100 tasks, and its token comes from the page before")
	}
	answer := &a2a.ListTasksResponse{Tasks: []*a2a.Task{}, PageSize: size}
	var last a2a.TaskID
	more := false
	err = d.book.latest(peer.Fingerprint, "", func(rec Record) bool {
		task := d.live(rec).Task
		if !matches(task, req) {
			return true
		}
		answer.TotalSize++
		switch {
		case req.PageToken != "" && string(task.ID) >= req.PageToken:
		case len(answer.Tasks) == size:
			more = true
		default:
			short := *shorten(task, req.HistoryLength)
			if !req.IncludeArtifacts {
				short.Artifacts = nil
			}
			answer.Tasks, last = append(answer.Tasks, &short), task.ID
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if more {
		answer.NextPageToken = string(last)
	}
	return answer, nil
}

func matches(task *a2a.Task, req *a2a.ListTasksRequest) bool {
	after := func(t *time.Time) bool {
		return req.StatusTimestampAfter == nil || t == nil || !t.Before(*req.StatusTimestampAfter)
	}
	return (req.ContextID == "" || req.ContextID == task.ContextID) &&
		(req.Status == "" || req.Status == task.Status.State) && after(task.Status.Timestamp)
}

// shorten is a task with the end of its history.
func shorten(task *a2a.Task, length *int) *a2a.Task {
	if length == nil || *length < 0 || *length >= len(task.History) {
		return task
	}
	short := *task
	short.History = short.History[len(short.History)-*length:]
	return &short
}

// GetTaskPushConfig implements a2asrv.RequestHandler.
func (desk) GetTaskPushConfig(context.Context, *a2a.GetTaskPushConfigRequest) (*a2a.PushConfig, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// ListTaskPushConfigs implements a2asrv.RequestHandler.
func (desk) ListTaskPushConfigs(context.Context, *a2a.ListTaskPushConfigRequest) (*a2a.ListTaskPushConfigResponse, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// CreateTaskPushConfig implements a2asrv.RequestHandler.
func (desk) CreateTaskPushConfig(context.Context, *a2a.PushConfig) (*a2a.PushConfig, error) {
	return nil, a2a.ErrPushNotificationNotSupported
}

// DeleteTaskPushConfig implements a2asrv.RequestHandler.
func (desk) DeleteTaskPushConfig(context.Context, *a2a.DeleteTaskPushConfigRequest) error {
	return a2a.ErrPushNotificationNotSupported
}

// GetExtendedAgentCard implements a2asrv.RequestHandler.
func (desk) GetExtendedAgentCard(context.Context, *a2a.GetExtendedAgentCardRequest) (*a2a.AgentCard, error) {
	return nil, a2a.ErrExtendedCardNotConfigured
}
