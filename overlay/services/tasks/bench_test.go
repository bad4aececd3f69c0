package tasks

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

// BenchmarkTask is a task from one message to its end, with two writes to the disk.
func BenchmarkTask(b *testing.B) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("done")) }))
	defer echo.Close()
	for name, h := range map[string]*Handler{
		"command": {Exec: []string{"/bin/cat"}, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
		"url":     {URL: echo.URL},
	} {
		b.Run(name, func(b *testing.B) {
			lab := servicetest.New(b, "alice")
			env := lab.Env()
			env.StateDir = b.TempDir()
			s := NewService(nil)
			lab.StartIn(s, env)
			c, err := Dial(b.Context(), "http://127.0.0.1:1003", func(ctx context.Context, _, _ string) (net.Conn, error) { return lab.Dial(ctx, "alice", "tcp", Port) })
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			if err := h.check(); err != nil {
				b.Fatal(err)
			}
			if err := s.open.Load().SetHandler(h); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if e, err := c.Send(b.Context(), Sending{Text: "hello"}); err != nil || e.State != "completed" {
					b.Fatalf("%+v, %v", e, err)
				}
			}
		})
	}
}
