package e2e_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A launched is a daemon in the foreground, as managers of services and containers
// run it.
type launched struct {
	name  string
	cmd   *exec.Cmd
	said  strings.Builder
	ended chan error
}

// launch starts one.
func launch(t *testing.T, name string, c *exec.Cmd) *launched {
	t.Helper()
	d := &launched{name: name, cmd: c, ended: make(chan error, 1)}
	c.Stdout, c.Stderr = &d.said, &d.said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.ended <- c.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			c.Process.Kill()
			<-d.ended
			t.Logf("%s: %s", name, &d.said)
		}
	})
	return d
}

// soon is how long an ending may take. Two seconds are promised; the machine may be
// busy.
const soon = 8 * time.Second

// end has the daemon told to end, and wants it to do so without an error.
func (d *launched) end(t *testing.T, tell func() error) {
	t.Helper()
	begin := time.Now()
	if err := tell(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-d.ended:
		if err != nil {
			t.Errorf("%s ends with %v", d.name, err)
		}
		t.Logf("%s: ended after %v", d.name, time.Since(begin).Round(time.Millisecond))
		d.ended <- nil
	case <-time.After(soon):
		t.Errorf("%s does not end", d.name)
	}
}

func terminate(pid int) func() error {
	return func() error { return syscall.Kill(pid, syscall.SIGTERM) }
}

// ignorant is an HTTP server that binds 127.0.0.1:8000, has no rights and knows
// nothing of agents.
func (l *lab) ignorant(t *testing.T, host string) {
	t.Helper()
	pages, err := os.MkdirTemp(l.dir, "pages")
	if err == nil {
		err = os.WriteFile(pages+"/index.html", []byte("what a program says that knows nothing\n"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := l.on(t.Context(), host, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
		"python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", pages)
	program := launch(t, "the program", c)
	t.Cleanup(func() { c.Process.Kill(); program.ended <- <-program.ended })
	within(t, 20*time.Second, "the program serves its neighbour", func() bool {
		return strings.Contains(finish(t, l.on(t.Context(), host, "curl", "-sS", "-m", "5", "http://127.0.0.1:8000/")).stdout, "knows nothing")
	})
}

// readsIgnorant has a peer read what the program says.
func readsIgnorant(t *testing.T, a *agent, name string) {
	t.Helper()
	o := a.run(t, "curl", "-sS", "--max-time", "20", "http://"+name+".pilot.internal/")
	if o.status != 0 || !strings.Contains(o.stdout, "knows nothing") {
		t.Errorf("%s", o)
	}
	t.Logf("a peer reads: %s", strings.TrimSpace(o.stdout))
}
