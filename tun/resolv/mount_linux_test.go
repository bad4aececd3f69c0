package resolv

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inMountNamespace runs the calling test again in a mount namespace of its own
// (and a user namespace, for want of root), and reports whether this is that run.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	return inNamespaces(t, unix.CLONE_NEWNS)
}

// inNamespaces is the same for a mount namespace and others.
func inNamespaces(t *testing.T, flags uintptr) bool {
	t.Helper()
	const mark = "PILOT_TEST_MOUNT_NAMESPACE"
	if os.Getenv(mark) == "1" {
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		return true
	}
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) {
		if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
			t.Fatalf("no mount namespace: %v", err)
		}
		t.Skipf("no mount namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// TestBindMount has the hosts file mounted onto itself, as containers have it.
func TestBindMount(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	for _, original := range []string{"127.0.0.1 localhost\n", "127.0.0.1 localhost"} {
		path := hostsFile(t, original)
		must(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
		if err := os.Rename(hostsFile(t, "y"), path); !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
			t.Fatalf("rename onto the mount point: %v", err)
		}
		before := inode(t, path)
		a, b := NewHosts(path, "a"), NewHosts(path, "b")
		must(t, a.Set(bob))
		must(t, b.Set(carol))
		if s := read(t, path); !strings.Contains(s, "bob") || !strings.Contains(s, "carol") {
			t.Errorf("file is %q", s)
		}
		must(t, a.Remove())
		must(t, b.Remove())
		if got := read(t, path); got != original || inode(t, path).Ino != before.Ino {
			t.Errorf("%q is left of %q", got, original)
		}
		onlyFile(t, path)
		must(t, unix.Unmount(path, 0))
	}
}

// TestReadOnlyDirectory has only the file writable: no new file beside it.
func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	path := hostsFile(t, "x\n")
	dir, keep := filepath.Dir(path), t.TempDir()
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	outer := filepath.Join(keep, "hosts")
	must(t, os.WriteFile(outer, []byte("x\n"), 0o644))
	must(t, unix.Mount(outer, path, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	h := NewHosts(path, "a")
	must(t, h.Set(bob))
	if s := read(t, outer); !strings.Contains(s, "bob") {
		t.Errorf("file is %q", s)
	}
	must(t, h.Remove())
	if s := read(t, outer); s != "x\n" {
		t.Errorf("file is %q", s)
	}
	must(t, unix.Unmount(path, 0))
	must(t, unix.Unmount(dir, 0))
}

// TestFullDisk: a change that finds no space leaves the file whole.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	defer unix.Unmount(dir, 0)
	page := os.Getpagesize()
	original := strings.Repeat("#\n", page/2-10)
	path := filepath.Join(dir, "hosts")
	must(t, os.WriteFile(path, []byte(original), 0o644))
	fill, err := os.Create(filepath.Join(dir, "fill"))
	must(t, err)
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, page))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	for way, rename := range map[string]func(string, string) error{"rename": os.Rename, "in place": refuse(unix.EBUSY)} {
		h := NewHosts(path, "a")
		h.rename = rename
		if err := h.Set(bob); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: Set = %v, want ENOSPC", way, err)
		}
		if got := read(t, path); got != original {
			t.Errorf("%s: the file has changed: %d bytes, were %d", way, len(got), len(original))
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	if err := overwrite(f, []byte(original), append([]byte("new"+original), make([]byte, page)...)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("overwrite = %v, want ENOSPC", err)
	}
	if got := read(t, path); got != original {
		t.Errorf("overwrite: the file has changed: %d bytes, were %d", len(got), len(original))
	}
}
