package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

const (
	exitInternal    = 1
	exitCheckFailed = 9
	exitInterrupted = 130
)

// exitStatus is the exit status of an error with that code.
func exitStatus(c overlay.Code) int {
	switch c {
	case overlay.CodeInvalidArgument:
		return 2
	case overlay.CodeNotRunning:
		return 3
	case overlay.CodeNotFound:
		return 4
	case overlay.CodeNotTrusted, overlay.CodeTrustPending:
		return 5
	case overlay.CodePeerOffline, overlay.CodeTimeout, overlay.CodeQuota:
		return 6
	case overlay.CodeConflict:
		return 7
	case overlay.CodeDenied, overlay.CodeNoTUN, overlay.CodeIPv6Disabled:
		return 8
	}
	return exitInternal
}

// A statusError has an exit status that does not follow from its code. Without
// an err all has been said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// finish shows err and returns the exit status.
func (p *program) finish(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		fmt.Fprintln(p.stderr, "pilotctl: interrupted")
		return exitInterrupted
	}
	s := new(statusError)
	if errors.As(err, &s) && s.err == nil {
		return s.status
	}
	e := api.AsError(err)
	if p.json {
		p.encode(api.Failure(e))
	} else {
		fmt.Fprintf(p.stderr, "pilotctl: %s\n", strings.TrimSpace(e.Message))
		if e.Hint != "" {
			fmt.Fprintf(p.stderr, "hint: %s\n", e.Hint)
		}
	}
	if s.status != 0 {
		return s.status
	}
	return exitStatus(e.Code)
}

// result prints what a command was called for: data as JSON, or what text writes.
func (p *program) result(data any, text func(w io.Writer)) error {
	if p.json {
		return p.encode(api.Success(data))
	}
	text(p.stdout)
	return nil
}

func (p *program) encode(e api.Envelope) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return err
	}
	_, err := p.stdout.Write(escapeUnprintable(b.Bytes()))
	return err
}

// escapeUnprintable writes what a terminal could obey or hide, such as the marks
// that turn the direction of writing, as JSON allows in strings: \u202e. Control
// characters below the space are escaped already.
func escapeUnprintable(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// tell writes a line of progress for humans.
func (p *program) tell(format string, args ...any) {
	fmt.Fprintf(p.stderr, format+"\n", args...)
}

// A table aligns its rows when it is closed. The first row is the heading.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t table) close() { t.w.Flush() }

// A facts list is aligned pairs; those without a value are left out.
func facts(w io.Writer, pairs ...string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "  %-12s %s\n", pairs[i], pairs[i+1])
		}
	}
}

// quoted shows another agent's words: on one line, in quotes, nothing in them
// able to act on a terminal.
func quoted(s string) string { return fmt.Sprintf("%q", s) }

// plain shows another agent's name where it cannot be mistaken for ours: as it is
// when it is a mere word, quoted otherwise.
func plain(s string) string {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return quoted(s)
		}
	}
	return s
}

// who shows another agent: by its own name for itself, or by its address.
func who(name, address string) string {
	if name == "" {
		return address
	}
	return plain(name)
}

func millis(v float64) string {
	switch {
	case v <= 0:
		return ""
	case v < 10:
		return fmt.Sprintf("%.2f ms", v)
	}
	return fmt.Sprintf("%.1f ms", v)
}

func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// span is a length of time as one would say it.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than 1 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// ago and until tell a moment relative to now; nil is an empty string.
func (p *program) ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return span(p.now().Sub(*t)) + " ago"
}

func (p *program) until(t *time.Time) string {
	switch {
	case t == nil || t.IsZero():
		return "never"
	case !t.After(p.now()):
		return "expired"
	}
	return "in " + span(t.Sub(p.now()))
}
