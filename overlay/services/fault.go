package services

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/pilotnet/pilot/overlay/services/disk"
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

// DiskFault makes an Error of one of the disk; nil if err is none. whose says whose disk
// it is: the reader may sit elsewhere.
func DiskFault(err error, whose string) *Error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Refuse(http.StatusInsufficientStorage, CodeQuota, "the disk %s is full", whose).
			WithHint("make room on the disk of the state directory there").Retry()
	case errors.Is(err, syscall.EROFS):
		return Refuse(http.StatusInternalServerError, CodeInternal, "the disk %s is read-only", whose).
			WithHint("dmesg may say why there; mount it writable again (mount -o remount,rw)").Retry()
	case errors.Is(err, disk.ErrFailed):
		return Refuse(http.StatusInternalServerError, CodeInternal, "the disk %s failed, and it is not known whether this was kept", whose).
			WithHint("is that disk healthy? dmesg and pilotctl status there say more").Retry()
	case errors.Is(err, syscall.EIO):
		return Refuse(http.StatusInternalServerError, CodeInternal, "the disk %s failed, and nothing was kept", whose).
			WithHint("is that disk healthy? dmesg and pilotctl status there say more").Retry()
	}
	return nil
}
