package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/pilotnet/pilot/overlay"
)

// Schema is the version of the answers, of this interface and of pilotctl --json.
const Schema = 1

// An Envelope is every answer: Data when OK, Error otherwise.
type Envelope struct {
	Schema int            `json:"schema"`
	OK     bool           `json:"ok"`
	Data   any            `json:"data,omitempty"`
	Error  *overlay.Error `json:"error,omitempty"`
}

// Success wraps an answer.
func Success(data any) Envelope { return Envelope{Schema: Schema, OK: true, Data: data} }

// Failure wraps an error; AsError says what becomes of foreign ones.
func Failure(err error) Envelope { return Envelope{Schema: Schema, Error: AsError(err)} }

// AsError finds the *overlay.Error in err. The end of a context becomes
// CodeTimeout and everything else CodeInternal.
func AsError(err error) *overlay.Error {
	var e *overlay.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return overlay.Errorf(overlay.CodeTimeout, "no answer in time").Retry()
	}
	return overlay.Errorf(overlay.CodeInternal, "%v", err)
}

// httpStatus repeats the code in the terms of HTTP.
func httpStatus(c overlay.Code) int {
	switch c {
	case overlay.CodeInvalidArgument:
		return http.StatusBadRequest
	case overlay.CodeNotFound:
		return http.StatusNotFound
	case overlay.CodeNotRunning:
		return http.StatusServiceUnavailable
	case overlay.CodeNotTrusted, overlay.CodeTrustPending, overlay.CodeDenied:
		return http.StatusForbidden
	case overlay.CodePeerOffline, overlay.CodeTimeout:
		return http.StatusGatewayTimeout
	case overlay.CodeConflict:
		return http.StatusConflict
	case overlay.CodeQuota:
		return http.StatusTooManyRequests
	}
	return http.StatusInternalServerError
}
