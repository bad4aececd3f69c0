package overlay

import "fmt"

// A Code classifies an error for programs: it is the "code" of the JSON error
// object and decides the exit status of pilotctl. The set is closed within one
// schema number of the output.
type Code string

// The codes, in the order of the interface page.
const (
	CodeInvalidArgument Code = "invalid_argument"
	CodeNotFound        Code = "not_found"
	CodeNotRunning      Code = "not_running"
	CodeNotTrusted      Code = "not_trusted"
	CodeTrustPending    Code = "trust_pending"
	CodePeerOffline     Code = "peer_offline"
	CodeTimeout         Code = "timeout"
	CodeDenied          Code = "denied"
	CodeNoTUN           Code = "no_tun"
	CodeIPv6Disabled    Code = "ipv6_disabled"
	CodeConflict        Code = "conflict"
	CodeQuota           Code = "quota"
	CodeInternal        Code = "internal"
)

// An Error is what a caller of the node, of the local API and of pilotctl gets:
// what went wrong, and what to do next.
type Error struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Retryable bool   `json:"retryable"`
}

// Error returns the message; the hint is shown on a line of its own by whoever
// prints it.
func (e *Error) Error() string { return e.Message }

// Errorf makes an Error without a hint.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that tells what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Retry returns a copy of e that says that the same call may succeed later.
func (e *Error) Retry() *Error {
	c := *e
	c.Retryable = true
	return &c
}
