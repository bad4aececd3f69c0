package e2e_test

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	serverListen  = "192.0.2.10:3478"
	serverMetrics = "127.0.0.1:9478"
)

// A server is a rendezvous server on rdv.
type server struct {
	lab   *lab
	state string
	name  string // HOST#KEY
	cmd   *exec.Cmd
}

// server starts one.
func (l *lab) server(t *testing.T) *server {
	t.Helper()
	s := &server{lab: l, state: filepath.Join(l.dir, "server")}
	key := strings.TrimSpace(l.output(t, "rdv", "pilotctl", "server", "key", "--state-dir", s.state))
	s.name = "192.0.2.10#" + key
	s.start(t)
	return s
}

// start returns when the server has printed the line to paste.
func (s *server) start(t *testing.T) {
	t.Helper()
	s.cmd = s.lab.on(t.Context(), "rdv", "pilotctl", "server", "run", "--listen", serverListen, "--metrics", serverMetrics, "--state-dir", s.state)
	if line := s.lab.ready(t, s.cmd); line != s.name {
		t.Fatalf("the server says --server %s, want %s", line, s.name)
	}
}

// ready starts a server in the background and returns what it says agents need.
func (l *lab) ready(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "--server "); ok {
			return name
		}
	}
	c.Wait()
	t.Fatalf("the server did not get ready: %s", &errs)
	return ""
}

// kill ends the server as a crash would.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.cmd.Wait()
}
