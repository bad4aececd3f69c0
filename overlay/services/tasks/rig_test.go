package tasks

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

// A rig is an agent with the service, and peers.
type rig struct {
	*testing.T
	lab   *servicetest.Lab
	dir   string
	tasks func() *Tasks
}

func newRig(t *testing.T, peers ...string) *rig {
	t.Helper()
	lab := servicetest.New(t, peers...)
	s := NewService(func(context.Context) (uint32, uint32, bool) { return uint32(os.Geteuid()), uint32(os.Getegid()), true })
	env := lab.Env()
	env.StateDir = t.TempDir()
	lab.StartIn(s, env)
	r := &rig{T: t, lab: lab, dir: env.StateDir, tasks: func() *Tasks {
		within(t, "the service runs", func() bool { return s.open.Load() != nil })
		return s.open.Load()
	}}
	r.tasks()
	return r
}

// handler sets a shell script for a handler.
func (r *rig) handler(script string, change ...func(*Handler)) {
	r.Helper()
	h := &Handler{Exec: []string{"/bin/sh", "-c", script}, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	for _, f := range change {
		f(h)
	}
	if err := h.check(); err != nil {
		r.Fatal(err)
	}
	if err := r.tasks().SetHandler(h); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) dial(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return r.lab.Dial(ctx, from, "tcp", Port) }
}

// client is a peer's.
func (r *rig) client(from string) *Client {
	r.Helper()
	c, err := Dial(r.Context(), "http://127.0.0.1:1003", r.dial(from))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(c.Close)
	return c
}

// web is a peer's plain HTTP client.
func (r *rig) web(from string) *http.Client {
	t := &http.Transport{DialContext: r.dial(from)}
	r.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

// send sends a text and wants that state.
func (r *rig) send(c *Client, text, state string) Entry {
	r.Helper()
	e, err := c.Send(r.Context(), Sending{Text: text})
	if err != nil || e.State != state {
		r.Fatalf("%+v, %v; want %s", e, err, state)
	}
	return e
}

// file is a path in a directory of the test, for scripts.
func (r *rig) file(name string) string { return filepath.Join(r.dir, name) }

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-late.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

func alive(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

var _ services.Service = (*Service)(nil)
