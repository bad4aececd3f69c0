package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/a2aproject/a2a-go/v2/a2a"
)

// An Error is what callers of Client and OwnerClient get. The codes are those of
// the local API.
type Error struct {
	Status    int    `json:"-"` // of HTTP; 0: not from an answer
	Code      string `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Retryable bool   `json:"retryable"`
}

// The codes of an Error.
const (
	CodeInvalid  = "invalid_argument"
	CodeNotFound = "not_found"
	CodeConflict = "conflict"
	CodeQuota    = "quota"
	CodeDenied   = "denied"
	CodeOffline  = "peer_offline"
	CodeTimeout  = "timeout"
	CodeInternal = "internal"
)

func (e *Error) Error() string { return e.Message }

func refuse(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) hint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) retry() *Error {
	e.Retryable = true
	return e
}

func (e *Error) write(w http.ResponseWriter) { writeJSON(w, e.Status, e) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // fails only when the caller has gone
}

// asError makes an Error of what a handler of ours returned.
func asError(err error) *Error {
	if e := new(Error); errors.As(err, &e) {
		return e
	}
	return refuse(http.StatusInternalServerError, CodeInternal, "%v", err)
}

// remoteError makes an Error of what the A2A library returned. What the other
// agent wrote in it is cut.
func remoteError(ctx context.Context, err error) *Error {
	e := new(Error)
	if errors.As(err, &e) {
		return e
	}
	if cause := context.Cause(ctx); cause != nil {
		return refuse(0, CodeTimeout, "no end of the task in time").retry()
	}
	if u := new(url.Error); errors.As(err, &u) {
		return refuse(0, CodeOffline, "no connection to the peer's tasks: %v", u.Err).retry()
	}
	for _, known := range []struct {
		err   error
		code  string
		retry bool
	}{
		{a2a.ErrTaskNotFound, CodeNotFound, false},
		{a2a.ErrTaskNotCancelable, CodeConflict, false},
		{a2a.ErrServerError, CodeQuota, true},
		{a2a.ErrInvalidParams, CodeInvalid, false},
		{a2a.ErrInvalidRequest, CodeInvalid, false},
		{a2a.ErrUnsupportedOperation, CodeInvalid, false},
		{a2a.ErrUnsupportedContentType, CodeInvalid, false},
		{a2a.ErrMethodNotFound, CodeInvalid, false},
		{a2a.ErrUnauthenticated, CodeDenied, false},
		{a2a.ErrUnauthorized, CodeDenied, false},
	} {
		if errors.Is(err, known.err) {
			return &Error{Code: known.code, Message: fmt.Sprintf("the peer refused: %.300q", err.Error()), Retryable: known.retry}
		}
	}
	return &Error{Code: CodeInternal, Message: fmt.Sprintf("the peer's answer is no use: %.300q", err.Error())}
}
