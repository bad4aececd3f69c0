package services

import (
	"fmt"
	"net/http"
)

// An Error is an answer that refuses: what a service sends, and what its clients
// get. The codes are those of the local API.
type Error struct {
	Status    int    `json:"-"` // of HTTP; 0: not from an answer
	Code      string `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Retryable bool   `json:"retryable"`
	Quota     int64  `json:"quota,omitempty"` // bytes
	Used      int64  `json:"used,omitempty"`
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

// Refuse makes an Error without a hint.
func Refuse(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Retry says that the same may succeed later.
func (e *Error) Retry() *Error {
	e.Retryable = true
	return e
}

// Answer sends the Error in place of what was begun.
func (e *Error) Answer(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Repr-Digest", "Content-Disposition"} {
		h.Del(name)
	}
	if e.Status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	WriteJSON(w, e.Status, e)
}
