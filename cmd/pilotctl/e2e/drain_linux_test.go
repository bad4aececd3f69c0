package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testDrain: an agent that is told to end begins nothing new, lets what is under way
// come to its end, to the last byte, then cuts what is left, and is gone after two seconds.
func testDrain(t *testing.T, server, client *agent, port string) {
	const size = mebibyte / 2
	started, finish := make(chan string, 2), make(chan struct{})
	mux := http.NewServeMux()
	begin := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun ")
		w.(http.Flusher).Flush()
		started <- r.URL.Path
	}
	mux.HandleFunc("/brief", func(w http.ResponseWriter, r *http.Request) {
		begin(w, r)
		<-finish
		io.CopyN(w, noise(), size)
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		begin(w, r)
		<-r.Context().Done()
	})
	s := &http.Server{Handler: mux}
	go s.Serve(server.lab.listen(t, server.host, "127.0.0.1:7070"))
	t.Cleanup(func() { s.Close() })
	server.pilot(t, "serve", "http", "7070", "--port", port)

	url := "http://" + server.name + ".pilot.internal:" + port
	brief := client.command(t.Context(), "curl", "-sSN", "-m", "20", url+"/brief")
	endless := client.command(t.Context(), "curl", "-sSN", "-m", "20", url+"/endless")
	sum, errs := sha256.New(), &strings.Builder{}
	brief.Stdout, brief.Stderr = sum, errs
	for _, c := range []interface{ Start() error }{brief, endless} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		<-started
	}
	pid := server.daemon()
	told := time.Now()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "nothing new is taken", func() bool {
		return client.run(t, "curl", "-sS", "-m", "1", url+"/").status == 7 // curl's for "connection refused"
	})
	close(finish)
	if err := brief.Wait(); err != nil {
		t.Errorf("what was under way did not come to its end: %v: %s", err, errs)
	}
	want := sha256.New()
	io.WriteString(want, "begun ")
	io.CopyN(want, noise(), size)
	if got := hex.EncodeToString(sum.Sum(nil)); got != hex.EncodeToString(want.Sum(nil)) {
		t.Errorf("what was under way came with other bytes: %s", got)
	}
	t.Logf("half a MiB came to its end %v after SIGTERM", time.Since(told).Round(time.Millisecond))
	within(t, 10*time.Second, "the daemon is gone", func() bool { return ended(pid) })
	took := time.Since(told)
	t.Logf("the daemon ended %v after SIGTERM", took.Round(time.Millisecond))
	if took > 5*time.Second { // of a busy machine
		t.Error("that is not two seconds")
	}
	if endless.Wait() == nil {
		t.Error("a request without an end came to one")
	}
}

// ended says whether a process has, whose parent need not have been told.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}
