package tasks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	maxLog    = 4 << 10
	graceTime = 2 * time.Second // between SIGTERM and SIGKILL
)

// command runs the command, which has no more rights than who set it, and leaves
// nothing of its process group behind.
func (h *Handler) command(ctx context.Context, c call, out io.Writer) (log string, err error) {
	cred, home, name, err := h.identity()
	if err != nil {
		return err.Error(), errors.New("the handler could not be started")
	}
	tail := new(tail)
	cmd := &exec.Cmd{
		Path: h.Exec[0], Args: h.Exec, Dir: home,
		Stdin: bytes.NewReader(c.in), Stdout: out, Stderr: tail,
		WaitDelay:   graceTime,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: cred},
		Env: []string{
			"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + home, "USER=" + name, "LOGNAME=" + name,
			"PILOT_TASK_ID=" + string(c.task), "PILOT_CONTEXT_ID=" + c.context, "PILOT_PEER_NAME=" + c.peer.Name,
			"PILOT_PEER_ADDRESS=" + c.peer.Addr.String(), "PILOT_PEER_ULA=" + c.peer.Addr.ULA().String(), "PILOT_PEER_FINGERPRINT=" + c.peer.Fingerprint.String(),
		},
	}
	contain(cmd.SysProcAttr)
	done := make(chan error, 1)
	go apart(func() { done <- supervise(ctx, cmd) })
	err = <-done
	log = tail.String()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return log, fmt.Errorf("the handler ended with %s", exit.ProcessState)
	}
	if err != nil {
		return log + err.Error(), errors.New("the handler could not be run")
	}
	return log, nil
}

// supervise runs cmd, the leader of its group, and ends the group when ctx ends,
// and at the latest with the leader.
func supervise(ctx context.Context, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	group := -cmd.Process.Pid
	ended, stopped := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		syscall.Kill(group, syscall.SIGTERM)
		late := time.NewTimer(graceTime)
		defer late.Stop()
		select {
		case <-ended:
		case <-late.C:
			syscall.Kill(group, syscall.SIGKILL)
		}
	})
	// The leader is not reaped before the group is killed: until then nobody else
	// can get its number.
	waitLeader(cmd.Process.Pid)
	close(ended)
	if !stop() {
		<-stopped
	}
	syscall.Kill(group, syscall.SIGKILL)
	return cmd.Wait()
}

// identity says whom to run as: nil is who we are.
func (h *Handler) identity() (cred *syscall.Credential, home, name string, err error) {
	groups := []uint32{h.GID}
	home, name = "/", strconv.Itoa(int(h.UID))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
		if info, err := os.Stat(u.HomeDir); err == nil && info.IsDir() {
			home = u.HomeDir
		}
		list, _ := u.GroupIds()
		for _, text := range list {
			if g, err := strconv.ParseUint(text, 10, 32); err == nil {
				groups = append(groups, uint32(g))
			}
		}
	}
	euid := uint32(os.Geteuid())
	switch {
	case euid == h.UID:
		return nil, home, name, nil
	case euid != 0:
		return nil, "", "", fmt.Errorf("the agent runs as user %d and cannot run a command as user %d", euid, h.UID)
	}
	return &syscall.Credential{Uid: h.UID, Gid: h.GID, Groups: groups}, home, name, nil
}

// A tail keeps the end of what is written.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - maxLog; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(t.b, []byte("\uFFFD")))
}
