package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// A plainError says in words what a failed dial means. What it was is still found by
// errors.Is and errors.As.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

// plain takes the layers of net, TLS and HTTP off an error: a user wants to know
// what to look at, and has read the address already.
func plain(err error) error {
	if err == nil {
		return nil
	}
	say := func(text string) error { return &plainError{text, err} }
	var already *plainError
	var dns *net.DNSError
	var record tls.RecordHeaderError
	var timeout net.Error
	var alert tls.AlertError
	switch {
	case errors.As(err, &already):
		return err
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return say("the name " + dns.Name + " is not known")
		}
		return say("the name " + dns.Name + " cannot be resolved")
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("connection refused")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return say("no route")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return say("the connection was cut")
	case errors.As(err, &record):
		return say("what answers does not speak TLS")
	case errors.As(err, &alert):
		return say("TLS is refused: " + alert.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return say("no answer")
	}
	return err
}

// over says by which way something failed. A proxy says its own name.
func (r Route) over(err error) error {
	if r.Proxy != nil {
		return fmt.Errorf("port %d by %w", r.Port, err)
	}
	return fmt.Errorf("port %d: %w", r.Port, err)
}
