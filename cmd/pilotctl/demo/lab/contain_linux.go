package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotAllowed says that this user may not make namespaces here.
var ErrNotAllowed = errors.New("the kernel does not let this user make namespaces")

const isolated = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Contain starts the command that make returns in namespaces of its own: plainly
// where that is allowed, as it is for root, and otherwise as the root of a new user
// namespace. The process gets a session of its own, since it outlives no terminal
// and is not to be interrupted by one.
func Contain(make func() *exec.Cmd) (*exec.Cmd, error) {
	plain := make()
	plain.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: isolated}
	err := plain.Start()
	if err == nil {
		return plain, nil
	}
	mapped := make()
	mapped.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		Cloneflags:  isolated | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if err := mapped.Start(); err == nil {
		return mapped, nil
	} else if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("lab: start in namespaces: %w", err)
	}
	return nil, fmt.Errorf("lab: %w: %v", ErrNotAllowed, err)
}

// Isolate is the first thing that the first process does. It takes the mounts out
// of the machine's sight. An error that Is ErrNotAllowed comes from systems that
// make user namespaces without any rights in them.
func Isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("lab: %w: %v", ErrNotAllowed, err)
		}
		return fmt.Errorf("lab: make the mounts private: %w", err)
	}
	// The machine's own /proc serves as well, and is all there is in containers
	// that hide parts of it: there the kernel refuses a second one.
	unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// Init is the life of the first process: it runs a program, collects the dead, and
// returns the program's exit status when that ends. The program gets the open files.
// The caller then exits, which ends all other processes.
func Init(path string, args []string, files []uintptr) (status int, err error) {
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		return 0, fmt.Errorf("lab: start %s: %w", path, err)
	}
	// These are the program's now. Whoever reads from them waits for their end.
	for _, fd := range files {
		syscall.Close(int(fd))
	}
	for {
		var ws syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("lab: wait: %w", err)
		case dead != pid:
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// Scratch puts an empty file system in memory over the directory, private to this
// mount namespace and those made from it.
func Scratch(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=256m"); err != nil {
		return fmt.Errorf("lab: mount a file system in memory on %s: %w", dir, err)
	}
	return nil
}
