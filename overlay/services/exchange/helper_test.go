package exchange

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

// The test binary is run again as one end of a transfer, so that it can be killed
// and measured.
const helperMode = "PILOT_EXCHANGE_HELPER"

func help(mode string) int {
	args := strings.Split(os.Getenv("PILOT_EXCHANGE_ARGS"), "\n")
	var err error
	switch mode {
	case "serve": // DIR ADDRESS
		err = helpServe(args[0], args[1])
	case "send": // BASE FILE
		err = helpSend(args[0], args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func helpServe(dir, address string) error {
	x, err := New(Config{Dir: dir, Peer: trusted})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return x.Serve(context.Background(), l, func(netip.Addr) (services.Peer, bool) { return bob, true })
}

func helpSend(base, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	s, err := sendingFile(f)
	if err != nil {
		return err
	}
	s.Progress = func(done int64) { fmt.Println(done) }
	_, _, err = NewClient(base, nil).Send(context.Background(), s)
	return err
}

func sendingFile(f *os.File) (Sending, error) {
	info, err := f.Stat()
	if err != nil {
		return Sending{}, err
	}
	sum, err := hashFile(f)
	return Sending{Name: filepath.Base(f.Name()), Size: info.Size(), SHA256: fmt.Sprintf("%x", sum), Source: f}, err
}

// A helper is such a process.
type helper struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startHelper(t *testing.T, mode string, args ...string) *helper {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperMode+"="+mode, "PILOT_EXCHANGE_ARGS="+strings.Join(args, "\n"), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: cmd, out: bufio.NewReader(out)}
	t.Cleanup(h.kill)
	return h
}

func (h *helper) kill() {
	if h.cmd.ProcessState == nil {
		h.cmd.Process.Kill()
		h.cmd.Wait()
	}
}

func (h *helper) line(t *testing.T) string {
	t.Helper()
	s, err := h.out.ReadString('\n')
	if err != nil {
		t.Fatal("the helper says nothing:", err)
	}
	return strings.TrimSpace(s)
}

// sparse makes a file of that size without the time to fill it; two different
// marks make sure that nothing is mistaken.
func sparse(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "big.bin"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(noise(100_000, 7), size-100_000); err != nil {
		t.Fatal(err)
	}
	f.WriteAt(noise(100_000, 8), size/3)
	return f
}

func largeSize() int64 {
	if os.Getenv("PILOT_LONG") != "" {
		return 1 << 30
	}
	if raceEnabled { // ten times as slow
		return 64 << 20
	}
	return 256 << 20
}

// TestKilledTransfersResume kills first the sender and then the receiver in the
// middle of one upload.
func TestKilledTransfersResume(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "exchange")
	f := sparse(t, 64<<20)
	server := startHelper(t, "serve", dir, "127.0.0.1:0")
	address := server.line(t)
	base := "http://" + address

	sender := startHelper(t, "send", base, f.Name())
	for {
		if done, _ := strconv.ParseInt(sender.line(t), 10, 64); done > 16<<20 {
			break
		}
	}
	sender.kill()

	s, err := sendingFile(f)
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(base, nil)
	defer c.Close()
	first := int64(-1)
	s.Progress = func(done int64) {
		if first < 0 {
			first = done
		}
		if done > 40<<20 && server.cmd.ProcessState == nil {
			server.kill()
		}
	}
	e := new(services.Error)
	if _, _, err := c.Send(t.Context(), s); !errors.As(err, &e) || !e.Retryable {
		t.Fatalf("the receiver was killed: %v", err)
	}
	if first < 8<<20 {
		t.Errorf("it began at %d", first)
	}
	startHelper(t, "serve", dir, address).line(t)
	first = -1
	got, there, err := c.Send(t.Context(), s)
	if err != nil || there || got.SHA256 != s.SHA256 || got.Size != s.Size {
		t.Fatalf("%+v %v %v", got, there, err)
	}
	if first < 16<<20 {
		t.Errorf("it began at %d", first)
	}
	if _, there, err = c.Send(t.Context(), s); err != nil || !there {
		t.Errorf("a second time: %v %v", there, err)
	}
}

// TestMemoryIsFlat samples the receiver's anonymous memory during a PUT and a
// resumable upload, and a GET of the same file.
func TestMemoryIsFlat(t *testing.T) {
	if _, err := anonymous(os.Getpid()); err != nil {
		t.Skip("no RssAnon here:", err)
	}
	dir := filepath.Join(t.TempDir(), "exchange")
	size := largeSize()
	f := sparse(t, size)
	server := startHelper(t, "serve", dir, "127.0.0.1:0")
	c := NewClient("http://"+server.line(t), nil)
	defer c.Close()
	s, err := sendingFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	idle, err := anonymous(server.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	most, samples, next := idle, 0, int64(0)
	s.Progress = func(done int64) {
		if done < next {
			return
		}
		next = done + size/64
		if now, err := anonymous(server.cmd.Process.Pid); err == nil {
			most, samples = max(most, now), samples+1
		}
	}
	begin := time.Now()
	s.Source = f
	if err := c.sendWhole(t.Context(), s, ""); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(begin)
	os.Rename(filepath.Join(dir, bob.Fingerprint.String(), "files", s.Name), filepath.Join(dir, "share", "all", s.Name))
	next = 0
	begin = time.Now()
	server.kill() // the quota is counted anew
	server = startHelper(t, "serve", dir, strings.TrimPrefix(c.base, "http://"))
	server.line(t)
	if _, _, err := c.Send(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	resumable := time.Since(begin)
	e, err := c.Stat(t.Context(), s.Name)
	if err != nil || e.SHA256 != s.SHA256 {
		t.Fatalf("%+v %v", e, err)
	}
	body, err := c.Fetch(t.Context(), e, 0)
	if err != nil {
		t.Fatal(err)
	}
	next = 0
	begin = time.Now()
	got := int64(0)
	n, err := io.Copy(writerFunc(func(p []byte) (int, error) {
		got += int64(len(p))
		s.Progress(got)
		return len(p), nil
	}), body)
	body.Close()
	if err != nil || n != size {
		t.Fatalf("%d %v", n, err)
	}
	rate := func(d time.Duration) string { return fmt.Sprintf("%.0f MB/s", float64(size)/1e6/d.Seconds()) }
	t.Logf("%d MiB: RssAnon %d KiB idle, at most %d KiB (%d samples); PUT %s, resumable %s, GET %s",
		size>>20, idle, most, samples, rate(whole), rate(resumable), rate(time.Since(begin)))
	if most-idle > 16<<10 || samples < 20 {
		t.Errorf("RssAnon grew from %d to %d KiB, %d samples", idle, most, samples)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// anonymous is RssAnon of a process in KiB.
func anonymous(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte("RssAnon:"))
	if !ok {
		return 0, errors.New("no RssAnon")
	}
	return strconv.Atoi(string(bytes.Fields(rest)[0]))
}
