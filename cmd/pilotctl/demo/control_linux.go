package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// A request is what a client of the control socket wants.
type request struct {
	Down bool     `json:"down,omitempty"`
	Host string   `json:"host,omitempty"`
	Argv []string `json:"argv,omitempty"` // none: a shell
	Term string   `json:"term,omitempty"` // set: the descriptors are a terminal of the program's own
}

// An answer says how a program ended, or that it did not begin.
type answer struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

const maxRequest = 64 << 10

// serve answers clients until the process ends.
func serve(l *net.UnixListener, w *world, down func()) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			r, files, err := receive(conn)
			if err == nil && r.Down {
				down()
				select {} // the end closes the connection
			}
			var a answer
			if err == nil {
				a.Status, err = w.host(r, files, conn)
			}
			if err != nil {
				a.Error = err.Error()
			}
			for _, f := range files {
				f.Close()
			}
			json.NewEncoder(conn).Encode(a)
		}()
	}
}

// receive reads a request and the descriptors that came with it.
func receive(conn *net.UnixConn) (r request, files []*os.File, err error) {
	body, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(body, oob)
	if err != nil {
		return r, nil, err
	}
	if n == 0 {
		return r, nil, io.ErrUnexpectedEOF // somebody only looked whether we are there
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return r, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return r, files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "client"))
		}
	}
	return r, files, json.Unmarshal(body[:n], &r)
}

// host runs a client's program on a host, and returns its exit status.
func (w *world) host(r request, files []*os.File, conn *net.UnixConn) (int, error) {
	h := w.hosts[r.Host]
	if h == nil || !w.furnished(r.Host) {
		return 0, fmt.Errorf("there is no host %.40q; there are alice, bob, mallory and server", r.Host)
	}
	if len(files) != 3 {
		return 0, errors.New("a program needs three descriptors")
	}
	argv := r.Argv
	if len(argv) == 0 {
		argv = []string{"sh", "-i"}
		if _, err := exec.LookPath("bash"); err == nil {
			argv = []string{"bash", "--norc", "-i"}
		}
	}
	cmd, err := w.command(h, argv...)
	if err != nil {
		return 0, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if r.Term != "" {
		cmd.Env = append(cmd.Env, "TERM="+r.Term)
		cmd.SysProcAttr.Setctty = true // the terminal is descriptor 0
	}
	if err := h.Start(cmd); err != nil {
		return 0, err
	}
	for _, f := range files {
		f.Close()
	}
	go func() {
		conn.Read(make([]byte, 1)) // the client hung up, or we have answered
		cmd.Process.Kill()
	}()
	cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}
