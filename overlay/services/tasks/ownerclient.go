package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

// An OwnerClient speaks to the tasks of this machine's own agent, over the use
// socket of the local API. Each error is an *services.Error.
type OwnerClient struct{ http *http.Client }

// NewOwnerClient returns a client for the agent whose use socket lies at socket.
func NewOwnerClient(socket string) *OwnerClient {
	return &OwnerClient{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Handler is the handler; nil: there is none.
func (o *OwnerClient) Handler(ctx context.Context) (*Handler, error) {
	var b handlerBody
	err := o.askInto(ctx, http.MethodGet, "handler", nil, &b)
	return b.Handler, err
}

// SetHandler sets the handler in the name of the user who calls.
func (o *OwnerClient) SetHandler(ctx context.Context, h Handler) (*Handler, error) {
	var b handlerBody
	err := o.askInto(ctx, http.MethodPut, "handler", h, &b)
	return b.Handler, err
}

// ClearHandler sets none.
func (o *OwnerClient) ClearHandler(ctx context.Context) error {
	return o.askInto(ctx, http.MethodDelete, "handler", nil, nil)
}

// List lists the tasks that came, the latest first: of one peer, or with an empty
// fingerprint of all.
func (o *OwnerClient) List(ctx context.Context, fingerprint string, limit int) (list []Entry, err error) {
	query := url.Values{"limit": {fmt.Sprint(limit)}}
	if fingerprint != "" {
		query.Set("peer", fingerprint)
	}
	return list, o.askInto(ctx, http.MethodGet, "list?"+query.Encode(), nil, &list)
}

// Get shows a task that came.
func (o *OwnerClient) Get(ctx context.Context, id string) (e Entry, err error) {
	return e, o.askInto(ctx, http.MethodGet, "task/"+url.PathEscape(id), nil, &e)
}

// Cancel ends a task that came.
func (o *OwnerClient) Cancel(ctx context.Context, id string) (e Entry, err error) {
	return e, o.askInto(ctx, http.MethodPost, "task/"+url.PathEscape(id)+"/cancel", nil, &e)
}

// Watch tells of each change of a task that came until it has ended.
func (o *OwnerClient) Watch(ctx context.Context, id string, told func(Entry)) (Entry, error) {
	var last Entry
	for {
		e, err := o.Get(ctx, id)
		if err != nil {
			return last, err
		}
		if last.ID == "" || !e.Updated.Equal(last.Updated) || e.State != last.State {
			told(e)
		}
		last = e
		if e.Ended {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return e, remoteError(ctx, ctx.Err())
		case <-time.After(pollPause):
		}
	}
}

func (o *OwnerClient) askInto(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return services.Refuse(0, services.CodeInternal, "%v", err)
		}
		body = strings.NewReader(string(text))
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://pilot"+OwnerPath+path, body)
	if err != nil {
		return services.Refuse(0, services.CodeInternal, "%v", err)
	}
	answer, err := o.http.Do(r)
	if err != nil {
		return services.Refuse(0, services.CodeOffline, "no answer from the agent: %v", err).Retry()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return services.Refuse(0, services.CodeOffline, "no answer from the agent: %v", err).Retry()
	}
	if answer.StatusCode >= 300 {
		e := new(services.Error)
		if json.Unmarshal(text, e) != nil || e.Message == "" {
			// A daemon without the service has no such path; it answers in its own form.
			e = services.Refuse(answer.StatusCode, services.CodeNotFound, "the service tasks of this agent is switched off").
				WithHint("start the agent with it: pilotctl up --services all")
		}
		e.Status = answer.StatusCode
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return services.Refuse(0, services.CodeInternal, "the agent's answer is damaged: %v", err)
	}
	return nil
}
