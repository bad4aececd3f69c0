package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Host is a machine of the lab. It needs no closing: it ends with the process.
type Host struct {
	name string
	net  netns.NsHandle
	mnt  *os.File
	link *netlink.Handle
}

// NewHost makes a host without any network but its loopback. It sees the files that
// the caller's process sees.
func NewHost(name string) (*Host, error) {
	h := &Host{name: name}
	if err := onThread(h.make); err != nil {
		return nil, fmt.Errorf("lab: make host %s: %w", name, err)
	}
	var err error
	if h.link, err = netlink.NewHandleAt(h.net, unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("lab: make host %s: netlink: %w", name, err)
	}
	return h, h.Up("lo")
}

// make runs on a thread that is thrown away.
func (h *Host) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	var err error
	if h.net, err = netns.GetFromPath("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h.mnt, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// onThread runs f on a thread that shares neither file system state nor namespaces
// with the others and ends after f: the goroutine never unlocks it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// Do runs f on the host. Sockets that f opens stay on the host when f has returned;
// what f starts in other goroutines is not on the host.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(h.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("lab: enter the files of %s: %w", h.name, err)
		}
		if err := unix.Setns(int(h.net), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: enter the network of %s: %w", h.name, err)
		}
		return f()
	})
}

// Start starts the command on the host; the caller waits for it as usual.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// Cover lets the host see the file with in place of the one at path, which must
// exist; links are followed. Nobody else's view changes.
func (h *Host) Cover(path, with string) error {
	return h.Do(func() error {
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			return fmt.Errorf("lab: %s: cover %s: %w", h.name, path, err)
		}
		if err := unix.Mount(with, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("lab: %s: cover %s: %w", h.name, target, err)
		}
		return nil
	})
}
