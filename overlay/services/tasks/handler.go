package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/overlay/services"
)

// What goes into a handler and comes out of it.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// A Handler does the work of tasks: a command or a URL.
type Handler struct {
	Exec        []string      `json:"exec,omitempty"` // an absolute path, then arguments
	URL         string        `json:"url,omitempty"`
	Format      string        `json:"format"`
	Description string        `json:"description,omitempty"` // for the agent card
	TimeLimit   time.Duration `json:"time_limit"`            // of a task, nanoseconds
	MaxOutput   int64         `json:"max_output"`            // bytes
	// UID and GID are whom a command runs as: who set it. Callers cannot choose.
	UID uint32    `json:"uid"`
	GID uint32    `json:"gid"`
	Set time.Time `json:"set"`
}

const (
	maxArguments   = 64 << 10
	maxDescription = 512
)

// check fills in what is usual and refuses what cannot work.
func (h *Handler) check() error {
	bad := func(format string, args ...any) error {
		return services.Refuse(http.StatusBadRequest, services.CodeInvalid, format, args...)
	}
	if h.Format == "" {
		h.Format = FormatText
	}
	if h.TimeLimit == 0 {
		h.TimeLimit = usualTime
	}
	if h.MaxOutput == 0 {
		h.MaxOutput = usualOutput
	}
	switch {
	case (len(h.Exec) == 0) == (h.URL == ""):
		return bad("a handler is either a command or a URL")
	case h.Format != FormatText && h.Format != FormatJSON:
		return bad("the format is text or json, not %.20q", h.Format)
	case h.TimeLimit < time.Second || h.TimeLimit > mostTime:
		return bad("the time limit lies between 1s and %s", mostTime)
	case h.MaxOutput < 1 || h.MaxOutput > mostOutput:
		return bad("the output limit lies between 1 and %d bytes", mostOutput)
	case len(h.Description) > maxDescription:
		return bad("the description is longer than %d bytes", maxDescription)
	}
	if h.URL != "" {
		u, err := url.Parse(h.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return bad("%.100q is no URL of a handler", h.URL).(*services.Error).WithHint("write it as http://127.0.0.1:9000/path")
		}
		return nil
	}
	if !filepath.IsAbs(h.Exec[0]) {
		return bad("the path of the command is not absolute: %.100q", h.Exec[0])
	}
	if size := len(strings.Join(h.Exec, " ")); size > maxArguments || slices.ContainsFunc(h.Exec, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return bad("the command is longer than %d bytes or has a zero byte in it", maxArguments)
	}
	return nil
}

// A call is one task for a handler.
type call struct {
	peer    services.Peer
	task    a2a.TaskID
	context string
	in      []byte
}

// input is what the handler reads.
func (h *Handler) input(peer services.Peer, m *a2a.Message) ([]byte, error) {
	if h.Format == FormatJSON {
		return json.Marshal(map[string]any{
			"task_id": m.TaskID, "context_id": m.ContextID, "message": m,
			"peer": map[string]string{
				"name": peer.Name, "address": peer.Addr.String(), "ula": peer.Addr.ULA().String(), "fingerprint": peer.Fingerprint.String(),
			},
		})
	}
	text, ok := textOf(m.Parts)
	if !ok {
		return nil, a2a.NewError(a2a.ErrUnsupportedContentType, "this agent takes text only")
	}
	return []byte(text), nil
}

// textOf joins the text parts. False: there are others.
func textOf(parts a2a.ContentParts) (string, bool) {
	var texts []string
	for _, p := range parts {
		if p == nil {
			return "", false
		}
		text, ok := p.Content.(a2a.Text)
		if !ok {
			return strings.Join(texts, "\n"), false
		}
		texts = append(texts, string(text))
	}
	return strings.Join(texts, "\n"), true
}

// run does the work. log is for the owner alone, err for the peer.
func (h *Handler) run(ctx context.Context, c call, out io.Writer) (log string, err error) {
	if h.URL != "" {
		return h.post(ctx, c, out)
	}
	return h.command(ctx, c, out)
}

var postClient = &http.Client{
	Transport: &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost:    maxAtWork,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// post sends the task to the handler's URL.
func (h *Handler) post(ctx context.Context, c call, out io.Writer) (log string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, strings.NewReader(string(c.in)))
	if err != nil {
		return err.Error(), fmt.Errorf("the handler cannot be reached")
	}
	kind := "text/plain; charset=utf-8"
	if h.Format == FormatJSON {
		kind = "application/json"
	}
	for name, value := range map[string]string{
		"Content-Type": kind, "Pilot-Task-Id": string(c.task), "Pilot-Context-Id": c.context, "Pilot-Peer-Name": c.peer.Name,
		"Pilot-Peer-Address": c.peer.Addr.String(), "Pilot-Peer-Fingerprint": c.peer.Fingerprint.String(),
	} {
		r.Header.Set(name, value)
	}
	answer, err := postClient.Do(r)
	if err != nil {
		return err.Error(), fmt.Errorf("the handler cannot be reached")
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, maxLog))
		return string(text), fmt.Errorf("the handler answered with HTTP status %d", answer.StatusCode)
	}
	if kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type")); h.Format == FormatJSON && kind != "application/json" {
		return "its Content-Type is not application/json", errNotJSON
	}
	if _, err := io.Copy(out, answer.Body); err != nil {
		return err.Error(), fmt.Errorf("the handler broke off its answer")
	}
	return "", nil
}
