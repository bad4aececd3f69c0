package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2aclient"
	"github.com/a2aproject/a2a-go/v2/a2acompat/a2av0"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
	"github.com/a2aproject/a2a-go/v2/log"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	maxCard    = 64 << 10
	maxAnswer  = 32 << 20
	cardTime   = 30 * time.Second
	pollPause  = time.Second
	silentTime = 5 * time.Second // that a lost peer may be away while its task is waited for, at a time
)

// A Client speaks A2A to another agent: to a service of this package or to any
// other. Each error is an *services.Error.
type Client struct {
	http *http.Client
	a2a  *a2aclient.Client
}

// Dial reads the card of the agent at base, such as
// http://[fd50:494c:4f54::200]:1003. A nil dial is the network of this machine.
func Dial(ctx context.Context, base string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*Client, error) {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	c := &Client{http: &http.Client{
		Transport: limited{&http.Transport{DialContext: dial, IdleConnTimeout: idleTime / 2, MaxIdleConnsPerHost: 1, MaxResponseHeaderBytes: 64 << 10}},
		// An agent never sends its callers elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	ctx = quiet(ctx)
	card, err := c.card(ctx, base)
	if err != nil {
		return nil, err
	}
	c.a2a, err = a2aclient.NewFromCard(ctx, card, a2aclient.WithDefaultsDisabled(),
		a2aclient.WithJSONRPCTransport(c.http), a2av0.WithJSONRPCTransport(a2av0.JSONRPCTransportConfig{Client: c.http}))
	if err != nil {
		return nil, services.Refuse(0, services.CodeInternal, "the peer's agent card offers nothing that can be used here: %.200q", err.Error())
	}
	return c, nil
}

// quiet keeps the library's own log away from the user.
func quiet(ctx context.Context) context.Context {
	return log.AttachLogger(ctx, slog.New(slog.DiscardHandler))
}

// Close drops connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// card fetches the card. Whatever it says, calls go to base.
func (c *Client) card(ctx context.Context, base string) (*a2a.AgentCard, error) {
	at, err := url.Parse(base)
	if err != nil {
		return nil, services.Refuse(0, services.CodeInvalid, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cardTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.JoinPath(a2asrv.WellKnownAgentCardPath).String(), nil)
	if err != nil {
		return nil, services.Refuse(0, services.CodeInvalid, "%v", err)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, remoteError(ctx, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxCard+1))
	switch {
	case err != nil:
		return nil, remoteError(ctx, err)
	case answer.StatusCode != http.StatusOK:
		return nil, services.Refuse(answer.StatusCode, services.CodeInternal, "the peer answered %.60q instead of an agent card", answer.Status)
	case len(text) > maxCard:
		return nil, services.Refuse(0, services.CodeInternal, "the peer's agent card is larger than %d KiB: it is not read", maxCard>>10)
	}
	card, err := a2av0.NewAgentCardParser()(text)
	if err != nil {
		return nil, services.Refuse(0, services.CodeInternal, "the peer's agent card is damaged: %.200q", err.Error())
	}
	for _, i := range card.SupportedInterfaces {
		u, err := url.Parse(i.URL)
		if err != nil {
			return nil, services.Refuse(0, services.CodeInternal, "the peer's agent card has a damaged URL")
		}
		i.URL = at.ResolveReference(&url.URL{Path: "/" + trimSlash(u.Path), RawQuery: u.RawQuery}).String()
	}
	return card, nil
}

func trimSlash(path string) string {
	for path != "" && path[0] == '/' {
		path = path[1:]
	}
	return path
}

// A Sending is what to send.
type Sending struct {
	Text    string
	Context string // continues a context; may be empty
	NoWait  bool   // return as soon as there is a task
	// Progress is told of each change; may be nil. text is what came since.
	Progress func(e Entry, text string)
}

// Send sends a message and follows its task to the end. If the connection breaks,
// the task is asked for again until ctx ends. An Entry with an ID beside an error is
// the task as it was seen last.
func (c *Client) Send(ctx context.Context, s Sending) (Entry, error) {
	m := a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart(s.Text))
	m.ContextID = s.Context
	req := &a2a.SendMessageRequest{Message: m, Config: &a2a.SendMessageConfig{ReturnImmediately: s.NoWait}}
	if s.NoWait {
		v, err := c.a2a.SendMessage(quiet(ctx), req)
		if err != nil {
			return Entry{}, remoteError(ctx, err)
		}
		f := following{}
		f.take(v)
		return f.Entry, nil
	}
	f := following{told: s.Progress}
	return c.follow(ctx, &f, func(ctx context.Context) error {
		for v, err := range c.a2a.SendStreamingMessage(ctx, req) {
			if err != nil {
				return err
			}
			f.take(v)
		}
		return nil
	})
}

// Watch follows a task to its end.
func (c *Client) Watch(ctx context.Context, id string, progress func(e Entry, text string)) (Entry, error) {
	f := following{told: progress}
	if e, err := c.Get(ctx, id); err != nil || e.Ended {
		return e, err
	}
	f.ID = id
	return c.follow(ctx, &f, func(ctx context.Context) error {
		for v, err := range c.a2a.SubscribeToTask(ctx, &a2a.SubscribeToTaskRequest{ID: a2a.TaskID(id)}) {
			if err != nil {
				return err
			}
			f.take(v)
		}
		return nil
	})
}

// follow reads a stream, and asks for the task when that ends too early.
func (c *Client) follow(ctx context.Context, f *following, stream func(context.Context) error) (Entry, error) {
	err := stream(quiet(ctx))
	for !f.Ended {
		if ctx.Err() != nil {
			return f.Entry, remoteError(ctx, ctx.Err())
		}
		if f.ID == "" {
			if err == nil {
				err = errors.New("the stream ended without a task")
			}
			return f.Entry, remoteError(ctx, err)
		}
		once, cancel := context.WithTimeout(ctx, silentTime)
		e, failed := c.Get(once, f.ID)
		cancel()
		if bad := new(services.Error); errors.As(failed, &bad) && !bad.Retryable {
			return f.Entry, failed
		}
		if failed == nil {
			f.renew(e)
			if f.Ended || e.State == "input-required" || e.State == "auth-required" {
				break
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollPause):
		}
	}
	return f.Entry, nil
}

// Get asks for a task.
func (c *Client) Get(ctx context.Context, id string) (Entry, error) {
	t, err := c.a2a.GetTask(quiet(ctx), &a2a.GetTaskRequest{ID: a2a.TaskID(id)})
	if err != nil {
		return Entry{}, remoteError(ctx, err)
	}
	return EntryOf(t), nil
}

// Cancel ends a task.
func (c *Client) Cancel(ctx context.Context, id string) (Entry, error) {
	t, err := c.a2a.CancelTask(quiet(ctx), &a2a.CancelTaskRequest{ID: a2a.TaskID(id)})
	if err != nil {
		return Entry{}, remoteError(ctx, err)
	}
	return EntryOf(t), nil
}

// List lists the tasks that we sent there, the latest first.
func (c *Client) List(ctx context.Context) ([]Entry, error) {
	answer, err := c.a2a.ListTasks(quiet(ctx), &a2a.ListTasksRequest{PageSize: mostPage})
	if err != nil {
		return nil, remoteError(ctx, err)
	}
	list := []Entry{}
	for _, t := range answer.Tasks {
		if t != nil {
			list = append(list, EntryOf(t).brief())
		}
	}
	return list, nil
}

// A following is a task put together from events.
type following struct {
	Entry
	told func(e Entry, text string)
}

func (f *following) take(v a2a.Event) {
	text := ""
	switch v := v.(type) {
	case *a2a.Task:
		f.renew(EntryOf(v))
		return
	case *a2a.Message: // an agent that answers without a task
		f.Entry = Entry{ID: string(v.TaskID), Context: v.ContextID, State: "completed", Ended: true, Untrusted: []string{"text", "data", "reason"}}
		f.add(v.Parts)
		text = f.Text
	case *a2a.TaskStatusUpdateEvent:
		f.ID, f.Context, f.State, f.Ended = string(v.TaskID), v.ContextID, word(v.Status.State), v.Status.State.Terminal()
		f.Reason = ""
		if v.Status.Message != nil {
			f.Reason, _ = textOf(v.Status.Message.Parts)
		}
		if v.Status.Timestamp != nil {
			f.Updated = *v.Status.Timestamp
		}
	case *a2a.TaskArtifactUpdateEvent:
		if v.Artifact == nil {
			return
		}
		before := len(f.Text)
		f.add(v.Artifact.Parts)
		text = f.Text[before:]
	}
	f.tell(text)
}

// renew takes the whole task anew.
func (f *following) renew(e Entry) {
	before := len(f.Text)
	f.Entry = e
	text := ""
	if len(e.Text) > before {
		text = e.Text[before:]
	}
	f.tell(text)
}

func (f *following) tell(text string) {
	if f.told != nil {
		f.told(f.Entry, text)
	}
}

// limited bounds what an answer may bring.
type limited struct{ inner *http.Transport }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.inner.RoundTrip(r)
	if err == nil {
		answer.Body = &limitedBody{answer.Body, maxAnswer}
	}
	return answer, err
}

func (l limited) CloseIdleConnections() { l.inner.CloseIdleConnections() }

type limitedBody struct {
	io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer is larger than %d MiB", maxAnswer>>20)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
