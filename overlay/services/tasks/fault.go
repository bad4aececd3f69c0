package tasks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/overlay/services"
)

// asError makes an Error of what a handler of ours returned.
func asError(err error) *services.Error {
	if e := new(services.Error); errors.As(err, &e) {
		return e
	}
	if e := services.DiskFault(err, "of the agent"); e != nil {
		return e
	}
	return services.Refuse(http.StatusInternalServerError, services.CodeInternal, "%v", err)
}

// unkept is what a peer learns of a task that could not be stored: no more than whether
// it may help to wait.
func unkept(err error) error {
	message := "the agent cannot keep a task now"
	if fault := services.DiskFault(err, "of the agent"); fault != nil {
		message = fault.Message
	}
	return a2a.NewError(a2a.ErrServerError, message)
}

// remoteError makes an Error of what the A2A library returned. What the other
// agent wrote in it is cut.
func remoteError(ctx context.Context, err error) *services.Error {
	e := new(services.Error)
	if errors.As(err, &e) {
		return e
	}
	if cause := context.Cause(ctx); cause != nil {
		return services.Refuse(0, services.CodeTimeout, "no end of the task in time").Retry()
	}
	if u := new(url.Error); errors.As(err, &u) {
		return services.Refuse(0, services.CodeOffline, "no connection to the peer's tasks: %v", u.Err).Retry()
	}
	for _, known := range []struct {
		err   error
		code  string
		retry bool
	}{
		{a2a.ErrTaskNotFound, services.CodeNotFound, false},
		{a2a.ErrTaskNotCancelable, services.CodeConflict, false},
		{a2a.ErrServerError, services.CodeQuota, true},
		{a2a.ErrInvalidParams, services.CodeInvalid, false},
		{a2a.ErrInvalidRequest, services.CodeInvalid, false},
		{a2a.ErrUnsupportedOperation, services.CodeInvalid, false},
		{a2a.ErrUnsupportedContentType, services.CodeInvalid, false},
		{a2a.ErrMethodNotFound, services.CodeInvalid, false},
		{a2a.ErrUnauthenticated, services.CodeDenied, false},
		{a2a.ErrUnauthorized, services.CodeDenied, false},
	} {
		if errors.Is(err, known.err) {
			return &services.Error{Code: known.code, Message: fmt.Sprintf("the peer refused: %.300q", err.Error()), Retryable: known.retry}
		}
	}
	return &services.Error{Code: services.CodeInternal, Message: fmt.Sprintf("the peer's answer is no use: %.300q", err.Error())}
}
