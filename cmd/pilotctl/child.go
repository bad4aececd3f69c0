package main

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/pilotnet/pilot/overlay"
)

const (
	maxLog    = 8 << 20 // a larger log is set aside when the daemon starts
	maxReport = 64 << 10
	reportFD  = 3 // the first of exec.Cmd.ExtraFiles
	maxFD     = 1024
)

// A child is a daemon in the background that this process started. It is in a
// session of its own, so that it outlives the terminal, and its output goes to the
// log. Over a pipe it tells why it ended.
type child struct {
	cmd    *exec.Cmd
	report *os.File
	dead   chan struct{} // closed when it has ended
	err    error         // how; read after dead is closed
}

// startDaemon starts pilotctl with args in the background.
func startDaemon(at places, args []string) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, systemError("find this program", err)
	}
	log, err := openLog(filepath.Join(at.state, logFile))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, systemError("start the daemon", err)
	}
	defer write.Close()
	cmd := exec.Command(exe, append(args, "--report-fd", strconv.Itoa(reportFD))...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What a script left open for us, such as a lock, is not for the daemon.
	for fd := 3; fd < maxFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	if err := cmd.Start(); err != nil {
		read.Close()
		return nil, systemError("start the daemon", err)
	}
	c := &child{cmd: cmd, report: read, dead: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.dead)
	}()
	return c, nil
}

// release lets go of a daemon; it runs on.
func (c *child) release() { c.report.Close() }

// failure is why the daemon ended, after dead.
func (c *child) failure(log string) error {
	data, _ := io.ReadAll(io.LimitReader(c.report, maxReport))
	e := new(overlay.Error)
	if json.Unmarshal(data, e) == nil && e.Code != "" {
		return e
	}
	how := "without an error"
	if c.err != nil {
		how = c.err.Error()
	}
	return overlay.Errorf(overlay.CodeInternal, "the daemon ended at once: %s", how).WithHint("its log: %s", log)
}

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		os.Rename(path, path+".1")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, systemError("open the log", err)
	}
	return f, nil
}

// reportTo writes the error that ends a daemon to whoever started it.
func reportTo(fd int, err *overlay.Error) {
	f := os.NewFile(uintptr(fd), "report")
	if f == nil {
		return
	}
	defer f.Close()
	if info, statErr := f.Stat(); statErr != nil || info.Mode().Type() != fs.ModeNamedPipe {
		return
	}
	json.NewEncoder(f).Encode(err)
}
