package main

import (
	"context"
	"errors"
	"time"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/events"
)

// A publishing sends events in order, and again what was not acknowledged when the
// connection ended.
type publishing struct {
	*eventPlace
	like     events.Message // but for the payload
	numbered bool           // errors name the line
	patience time.Duration
	stored   func(line int) error

	source  <-chan piece
	pending []*outgoing
	lines   int
	done    int
	since   time.Time // of the last progress
}

type outgoing struct {
	line int
	msg  events.Message
}

type answered struct {
	out *outgoing
	err error
}

// all publishes until the source ends and all is acknowledged.
func (r *publishing) all(ctx context.Context, source <-chan piece) error {
	r.source, r.since = source, time.Now()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		before := r.done
		err := r.once(ctx)
		if err == nil || ctx.Err() != nil || !retryable(err) || time.Since(r.since) > r.patience {
			return errors.Join(ctx.Err(), err)
		}
		if r.done > before {
			pause = 100 * time.Millisecond
		}
		if !rest(ctx, pause) {
			return ctx.Err()
		}
	}
}

// rest waits, and reports whether ctx goes on.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once publishes over one connection.
func (r *publishing) once(ctx context.Context) error {
	client, err := r.connect(ctx, events.ClientConfig{})
	if err != nil {
		return err
	}
	defer client.Close()
	window := client.Window()
	answers := make(chan answered, window+len(r.pending))
	send := func(o *outgoing, again bool) {
		client.Publish(&o.msg, again, func(err error) { answers <- answered{o, err} })
	}
	flying := 0
	for _, o := range r.pending {
		send(o, true)
		flying++
	}
	for {
		source := r.source
		if flying >= window {
			source = nil
		}
		if source == nil && flying == 0 {
			return nil
		}
		select {
		case p, more := <-source:
			if !more {
				r.source = nil
				continue
			}
			if p.err != nil {
				return p.err
			}
			r.lines++
			o := &outgoing{line: r.lines, msg: r.like}
			o.msg.Payload = p.payload
			r.pending = append(r.pending, o)
			send(o, false)
			flying++
		case a := <-answers:
			flying--
			if a.err != nil {
				return r.unsent(a)
			}
			if err := r.finish(a.out); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unsent is why an event was not taken.
func (r *publishing) unsent(a answered) error {
	err := r.failed(a.err)
	if e := new(overlay.Error); r.numbered && errors.As(err, &e) && !e.Retryable {
		failure := overlay.Errorf(e.Code, "line %d: %s", a.out.line, e.Message)
		if e.Hint != "" {
			return failure.WithHint("%s", e.Hint)
		}
		return failure
	}
	return err
}

func (r *publishing) finish(o *outgoing) error {
	for i, p := range r.pending {
		if p == o {
			r.pending = append(r.pending[:i], r.pending[i+1:]...)
			break
		}
	}
	r.done++
	r.since = time.Now()
	return r.stored(o.line)
}
