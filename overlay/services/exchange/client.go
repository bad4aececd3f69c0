package exchange

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	// Resumable is the size from which Send uploads in a way that it can resume.
	Resumable = 4 << 20

	stallTime  = 30 * time.Second // without a byte, while bytes are due
	answerTime = 10 * time.Minute // the other side computes a digest, perhaps of a disk's worth
	maxReply   = 16 << 20
)

// A Client speaks to the exchange of another agent. Each error is an *services.Error; one
// that came from no answer has services.CodeOffline or services.CodeTimeout and is Retryable.
type Client struct {
	base string
	http *http.Client
}

// NewClient returns a client for the exchange at base, such as
// http://[fd50:494c:4f54::200]:1001. A nil dial is the network of this machine.
func NewClient(base string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	return &Client{base: strings.TrimSuffix(base, "/"), http: &http.Client{
		Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 1, IdleConnTimeout: idleTime / 2, WriteBufferSize: copyBuffer, ReadBufferSize: copyBuffer},
		// An agent never sends its callers elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request. The answer's body must be closed; any status of 300 or more
// is an error.
func (c *Client) do(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, services.Refuse(0, services.CodeInvalid, "%v", err)
	}
	if header != nil {
		r.Header = header
	}
	if body != nil {
		r.ContentLength = length
		if length == 0 {
			r.Body = http.NoBody
		}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, noAnswer(ctx, err)
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	e := new(services.Error)
	if json.Unmarshal(text, e) != nil || e.Code == "" {
		first, _, _ := strings.Cut(string(text), "\n")
		e = &services.Error{Code: codeOf(answer.StatusCode), Message: "the peer answered " + answer.Status}
		switch {
		case answer.StatusCode == http.StatusInsufficientStorage: // to a HEAD, which has no words
			e.Message = "the peer has no room: its disk is full, or its quota for us"
			e.Hint = "ask its owner to make room, then send it again"
		case first != "":
			e.Message = fmt.Sprintf("%s %.200q", e.Message, first)
		}
		e.Retryable = answer.StatusCode >= 500 || answer.StatusCode == http.StatusLocked || answer.StatusCode == http.StatusRequestTimeout
	}
	e.Status = answer.StatusCode
	return nil, e
}

func codeOf(status int) string {
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return services.CodeNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return services.CodeConflict
	case http.StatusForbidden:
		return services.CodeDenied
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage, http.StatusTooManyRequests:
		return services.CodeQuota
	}
	if status >= 500 {
		return services.CodeInternal
	}
	return services.CodeInvalid
}

func noAnswer(ctx context.Context, err error) *services.Error {
	e := new(services.Error)
	if errors.As(err, &e) { // from our own body
		return e
	}
	if cause := context.Cause(ctx); cause != nil {
		if errors.As(cause, &e) {
			return e
		}
		return services.Refuse(0, services.CodeTimeout, "interrupted: %v", cause).Retry()
	}
	u := new(url.Error)
	if errors.As(err, &u) {
		err = u.Err
	}
	return services.Refuse(0, services.CodeOffline, "no connection to the peer's data exchange: %v", err).Retry()
}

// ask is do for answers in JSON.
func (c *Client) ask(ctx context.Context, method, path string, header http.Header, body io.Reader, length int64, out any) error {
	answer, err := c.do(ctx, method, path, header, body, length)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxReply))
	if err != nil {
		return noAnswer(ctx, err)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return services.Refuse(answer.StatusCode, services.CodeInternal, "the peer's answer is not what a data exchange says")
	}
	return nil
}

// quick bounds calls that move little.
func quick(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, stallTime, services.Refuse(0, services.CodeTimeout, "the peer did not answer within %s", stallTime).Retry())
}

// Hello asks for limits and usage.
func (c *Client) Hello(ctx context.Context) (h Hello, err error) {
	ctx, cancel := quick(ctx)
	defer cancel()
	return h, c.ask(ctx, http.MethodGet, "/v1/", nil, nil, 0, &h)
}

// Offered lists what the peer offers to us.
func (c *Client) Offered(ctx context.Context) (list []Entry, err error) {
	ctx, cancel := quick(ctx)
	defer cancel()
	return list, c.ask(ctx, http.MethodGet, "/v1/files/", nil, nil, 0, &list)
}

// Message leaves a message.
func (c *Client) Message(ctx context.Context, contentType string, body []byte) (id string, err error) {
	ctx, cancel := quick(ctx)
	defer cancel()
	var v struct{ ID string }
	err = c.ask(ctx, http.MethodPost, "/v1/messages", http.Header{"Content-Type": {contentType}}, strings.NewReader(string(body)), int64(len(body)), &v)
	return v.ID, err
}

// Stat says what a file is that the peer offers, with its digest.
func (c *Client) Stat(ctx context.Context, name string) (Entry, error) {
	return c.head(ctx, "/v1/files/"+url.PathEscape(name), name)
}

// Sent says what we left there under that name, with its digest.
func (c *Client) Sent(ctx context.Context, name string) (Entry, error) {
	return c.head(ctx, "/v1/sent/"+url.PathEscape(name), name)
}

func (c *Client) head(ctx context.Context, path, name string) (Entry, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTime, services.Refuse(0, services.CodeTimeout, "the peer did not answer").Retry())
	defer cancel()
	answer, err := c.do(ctx, http.MethodHead, path, http.Header{"Want-Repr-Digest": {"sha-256=1"}}, nil, 0)
	if err != nil {
		if e := new(services.Error); errors.As(err, &e) && e.Status == http.StatusNotFound {
			return Entry{}, &services.Error{Status: e.Status, Code: services.CodeNotFound, Message: fmt.Sprintf("the peer has no %q for us", name)}
		}
		return Entry{}, err
	}
	answer.Body.Close()
	sum, err := digestIn(answer.Header)
	if err != nil || sum == nil || answer.ContentLength < 0 {
		return Entry{}, services.Refuse(answer.StatusCode, services.CodeInternal, "the peer did not say what the file is")
	}
	e := Entry{Name: name, Size: answer.ContentLength, SHA256: hex.EncodeToString(sum), ETag: answer.Header.Get("Etag"), Type: answer.Header.Get("Content-Type")}
	e.Time, _ = http.ParseTime(answer.Header.Get("Last-Modified"))
	return e, nil
}

// Fetch reads a file that Stat described, from an offset. It ends with an error if
// the peer falls silent or the file is not that one any more.
func (c *Client) Fetch(ctx context.Context, e Entry, offset int64) (io.ReadCloser, error) {
	return c.fetch(ctx, "/v1/files/"+url.PathEscape(e.Name), e, offset)
}

func (c *Client) fetch(ctx context.Context, path string, e Entry, offset int64) (io.ReadCloser, error) {
	ctx, w := newWatch(ctx)
	h := http.Header{"Range": {fmt.Sprintf("bytes=%d-", offset)}}
	if e.ETag != "" {
		h.Set("If-Match", e.ETag)
	}
	if offset == 0 {
		h.Del("Range")
	}
	answer, err := c.do(ctx, http.MethodGet, path, h, nil, 0)
	if err != nil {
		w.stop()
		return nil, err
	}
	if offset > 0 && (answer.StatusCode != http.StatusPartialContent || !strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset))) {
		answer.Body.Close()
		w.stop()
		return nil, services.Refuse(answer.StatusCode, services.CodeInternal, "the peer does not go on where it was asked to")
	}
	return &watchedBody{ctx: ctx, ReadCloser: answer.Body, w: w}, nil
}

type watchedBody struct {
	ctx context.Context
	io.ReadCloser
	w *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.w.progress()
	if err != nil && err != io.EOF {
		err = noAnswer(b.ctx, err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.w.stop()
	return b.ReadCloser.Close()
}

// A watch cancels a transfer in which nothing moves.
type watch struct {
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newWatch(ctx context.Context) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{cancel: cancel}
	w.timer = time.AfterFunc(stallTime, func() {
		cancel(services.Refuse(0, services.CodeTimeout, "nothing moved for %s", stallTime).Retry())
	})
	return ctx, w
}

func (w *watch) progress() { w.timer.Reset(stallTime) }

// due gives the other side time to think, once everything is sent.
func (w *watch) due() { w.timer.Reset(answerTime) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// A Sending is a file to send.
type Sending struct {
	Name   string
	Type   string // media type; may be empty
	Size   int64
	SHA256 string      // hexadecimal
	Source io.ReaderAt // must not change meanwhile
	// Replace takes the place of a file that is there under that name.
	Replace bool
	// Progress is told how many bytes the other side has; it may go backwards. May
	// be nil.
	Progress func(done int64)
}

// Send leaves a file with the peer, in one request or from Resumable on by tus,
// where it goes on at the point at which an earlier Send of the same file ended,
// of this process or another. A file that is there already is not sent again:
// there is true.
func (c *Client) Send(ctx context.Context, s Sending) (e Entry, there bool, err error) {
	if s.Progress == nil {
		s.Progress = func(int64) {}
	}
	replace := ""
	old, err := c.Sent(ctx, s.Name)
	fault := new(services.Error)
	switch {
	case err == nil && old.SHA256 == s.SHA256 && old.Size == s.Size:
		s.Progress(s.Size)
		return old, true, nil
	case err == nil && !s.Replace:
		return e, false, services.Refuse(http.StatusConflict, services.CodeConflict, "the peer has another file %q from us already", s.Name).
			WithHint("send it under another name, or replace that one with --force")
	case err == nil:
		replace = old.ETag
	case errors.As(err, &fault) && fault.Status != http.StatusNotFound || fault.Code == "":
		return e, false, err
	}
	if s.Size < Resumable {
		err = c.sendWhole(ctx, s, replace)
	} else {
		err = c.sendResumable(ctx, s, replace)
	}
	if err != nil {
		return e, false, err
	}
	// The answer may be lost, and what is there now is what counts.
	if e, err = c.Sent(ctx, s.Name); err != nil {
		return e, false, err
	}
	if e.SHA256 != s.SHA256 {
		return e, false, services.Refuse(http.StatusConflict, services.CodeConflict, "another file took the name %q meanwhile", s.Name)
	}
	return e, false, nil
}

// body reads the source from an offset on.
func (s Sending) body(w *watch, offset int64) io.Reader {
	return &sendingBody{s: s, r: io.NewSectionReader(s.Source, offset, s.Size-offset), w: w, done: offset}
}

type sendingBody struct {
	s    Sending
	r    io.Reader
	w    *watch
	done int64
}

func (b *sendingBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.done += int64(n)
	if b.done == b.s.Size {
		b.w.due()
	} else {
		b.w.progress()
	}
	b.s.Progress(b.done)
	if err == io.EOF && b.done < b.s.Size {
		return n, services.Refuse(0, services.CodeInvalid, "the file became shorter while it was sent")
	}
	return n, err
}

func (c *Client) sendWhole(ctx context.Context, s Sending, replace string) error {
	ctx, w := newWatch(ctx)
	defer w.stop()
	h := http.Header{"Content-Digest": {digestField(s.SHA256)}, "Expect": {"100-continue"}}
	setSome(h, "Content-Type", s.Type)
	setSome(h, "If-Match", replace)
	var e Entry
	return c.ask(ctx, http.MethodPut, "/v1/files/"+url.PathEscape(s.Name), h, s.body(w, 0), s.Size, &e)
}

// sendResumable finds the upload that was begun, or begins one, and brings the
// rest.
func (c *Client) sendResumable(ctx context.Context, s Sending, replace string) error {
	at, offset, err := c.begun(ctx, s)
	if err != nil {
		return err
	}
	if at == "" {
		if at, err = c.beginUpload(ctx, s, replace); err != nil {
			return err
		}
	}
	s.Progress(offset)
	ctx, w := newWatch(ctx)
	defer w.stop()
	h := http.Header{"Tus-Resumable": {"1.0.0"}, "Content-Type": {"application/offset+octet-stream"}, "Upload-Offset": {strconv.FormatInt(offset, 10)}}
	answer, err := c.do(ctx, http.MethodPatch, at, h, s.body(w, offset), s.Size-offset)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.Header.Get("Upload-Offset") != strconv.FormatInt(s.Size, 10) {
		return services.Refuse(answer.StatusCode, services.CodeInternal, "the peer took only a part").Retry()
	}
	return nil
}

// begun looks for an unfinished upload of the same file.
func (c *Client) begun(ctx context.Context, s Sending) (at string, offset int64, err error) {
	ctx, cancel := quick(ctx)
	defer cancel()
	var list []Upload
	if err := c.ask(ctx, http.MethodGet, uploadsPath, nil, nil, 0, &list); err != nil {
		return "", 0, err
	}
	for _, u := range list {
		if u.Name != s.Name || u.Size != s.Size || u.SHA256 != s.SHA256 || !validID(u.ID) {
			continue
		}
		// HEAD ends a request of ours that is still at work there.
		answer, err := c.do(ctx, http.MethodHead, uploadsPath+u.ID, http.Header{"Tus-Resumable": {"1.0.0"}}, nil, 0)
		if err != nil {
			return "", 0, err
		}
		answer.Body.Close()
		offset, err := strconv.ParseInt(answer.Header.Get("Upload-Offset"), 10, 64)
		if err != nil || offset < 0 || offset > s.Size {
			return "", 0, services.Refuse(answer.StatusCode, services.CodeInternal, "the peer does not say how far the upload is")
		}
		return uploadsPath + u.ID, offset, nil
	}
	return "", 0, nil
}

func (c *Client) beginUpload(ctx context.Context, s Sending, replace string) (at string, err error) {
	ctx, cancel := quick(ctx)
	defer cancel()
	meta := "filename " + base64.StdEncoding.EncodeToString([]byte(s.Name)) + ",sha256 " + base64.StdEncoding.EncodeToString([]byte(s.SHA256))
	if s.Type != "" {
		meta += ",filetype " + base64.StdEncoding.EncodeToString([]byte(s.Type))
	}
	h := http.Header{"Tus-Resumable": {"1.0.0"}, "Upload-Length": {strconv.FormatInt(s.Size, 10)}, "Upload-Metadata": {meta}}
	setSome(h, "If-Match", replace)
	answer, err := c.do(ctx, http.MethodPost, uploadsPath, h, http.NoBody, 0)
	if err != nil {
		return "", err
	}
	answer.Body.Close()
	u, err := url.Parse(answer.Header.Get("Location"))
	if err != nil || !validID(lastPart(u.Path)) {
		return "", services.Refuse(answer.StatusCode, services.CodeInternal, "the peer does not say where to upload")
	}
	return uploadsPath + lastPart(u.Path), nil
}

func setSome(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}
