package exchange

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// An OwnerClient speaks to the exchange of this machine's own agent, over the use
// socket of the local API.
type OwnerClient struct{ c *Client }

// NewOwnerClient returns a client for the agent whose use socket lies at socket.
func NewOwnerClient(socket string) *OwnerClient {
	return &OwnerClient{NewClient("http://pilot", func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})}
}

// Close drops idle connections.
func (o *OwnerClient) Close() { o.c.Close() }

// Inbox lists what came in; it waits that long for the first thing.
func (o *OwnerClient) Inbox(ctx context.Context, wait time.Duration) (list []Entry, err error) {
	return list, o.c.ask(ctx, http.MethodGet, OwnerPath+"inbox?wait="+wait.String(), nil, nil, 0, &list)
}

// Shared lists what we offer.
func (o *OwnerClient) Shared(ctx context.Context) (list []Entry, err error) {
	return list, o.c.ask(ctx, http.MethodGet, OwnerPath+"share", nil, nil, 0, &list)
}

// Queue lists what waits for peers.
func (o *OwnerClient) Queue(ctx context.Context) (list []Waiting, err error) {
	return list, o.c.ask(ctx, http.MethodGet, OwnerPath+"queue", nil, nil, 0, &list)
}

func (e Entry) inboxPath() string {
	kind := "files"
	if e.Kind == "message" {
		kind = "messages"
	}
	return OwnerPath + "inbox/" + e.Fingerprint + "/" + kind + "/" + url.PathEscape(e.Name)
}

// Stat completes an entry of Inbox with its digest.
func (o *OwnerClient) Stat(ctx context.Context, e Entry) (Entry, error) {
	full, err := o.c.head(ctx, e.inboxPath(), e.Name)
	full.Kind, full.From, full.Fingerprint = e.Kind, e.From, e.Fingerprint
	return full, err
}

// Fetch reads what Stat described, from an offset.
func (o *OwnerClient) Fetch(ctx context.Context, e Entry, offset int64) (io.ReadCloser, error) {
	return o.c.fetch(ctx, e.inboxPath(), e, offset)
}

// Remove takes something out of the inbox.
func (o *OwnerClient) Remove(ctx context.Context, e Entry) error { return o.delete(ctx, e.inboxPath()) }

func (o *OwnerClient) delete(ctx context.Context, path string) error {
	ctx, cancel := quick(ctx)
	defer cancel()
	answer, err := o.c.do(ctx, http.MethodDelete, path, nil, nil, 0)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// Offer puts a file into share, for "all" or for a fingerprint.
func (o *OwnerClient) Offer(ctx context.Context, to string, s Sending) (e Entry, err error) {
	ctx, w := newWatch(ctx)
	defer w.stop()
	if s.Progress == nil {
		s.Progress = func(int64) {}
	}
	h := http.Header{"Content-Digest": {digestField(s.SHA256)}, "Expect": {"100-continue"}}
	if s.Replace {
		if old, err := o.c.head(ctx, sharePath(to, s.Name), s.Name); err == nil {
			h.Set("If-Match", old.ETag)
		}
	}
	return e, o.c.ask(ctx, http.MethodPut, sharePath(to, s.Name), h, s.body(w, 0), s.Size, &e)
}

// Withdraw takes a file out of share.
func (o *OwnerClient) Withdraw(ctx context.Context, to, name string) error {
	return o.delete(ctx, sharePath(to, name))
}

func sharePath(to, name string) string {
	return OwnerPath + "share/" + to + "/" + url.PathEscape(name)
}

// Enqueue keeps a file for a peer.
func (o *OwnerClient) Enqueue(ctx context.Context, to string, s Sending) (it Waiting, err error) {
	ctx, w := newWatch(ctx)
	defer w.stop()
	if s.Progress == nil {
		s.Progress = func(int64) {}
	}
	query := url.Values{"to": {to}, "name": {s.Name}}
	return it, o.c.ask(ctx, http.MethodPost, OwnerPath+"queue?"+query.Encode(), nil, s.body(w, 0), s.Size, &it)
}

// Unqueue drops an item of the queue.
func (o *OwnerClient) Unqueue(ctx context.Context, id string) error {
	return o.delete(ctx, OwnerPath+"queue/"+url.PathEscape(id))
}
