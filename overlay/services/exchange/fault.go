package exchange

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"
)

// An Error is an answer that refuses: what a client gets, on both sides of the
// exchange. The codes are those of the local API.
type Error struct {
	Status    int    `json:"-"` // of HTTP
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

func badName(err error) *Error {
	return refuse(http.StatusBadRequest, CodeInvalid, "%v", err).hint("choose a plain name of letters, digits, dots and hyphens")
}

func notFound(name string) *Error {
	return refuse(http.StatusNotFound, CodeNotFound, "there is no %.80q", name)
}

// asError makes an answer of any error. What happened inside is not told.
func asError(err error) *Error {
	e := new(Error)
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return diskFull()
	}
	return refuse(http.StatusInternalServerError, CodeInternal, "the file could not be stored or read").retry()
}

func diskFull() *Error {
	return refuse(http.StatusInsufficientStorage, CodeQuota, "the disk of the receiver is full").retry()
}

func (e *Error) write(w http.ResponseWriter) {
	h := w.Header()
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Repr-Digest", "Content-Disposition"} {
		h.Del(name)
	}
	if e.Status == http.StatusTooManyRequests {
		h.Set("Retry-After", strconv.Itoa(1))
	}
	writeJSON(w, e.Status, e)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // fails only when the caller has gone
}
