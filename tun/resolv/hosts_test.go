package resolv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostsFile makes a hosts file in a directory of its own.
func hostsFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func inode(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t)
}

// onlyFile fails if something beside the file was left in its directory.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	for _, e := range list {
		if e.Name() != filepath.Base(path) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

// refuse is a rename that fails as on a mount point.
func refuse(errno error) func(string, string) error {
	return func(from, to string) error { return &os.LinkError{Op: "rename", Old: from, New: to, Err: errno} }
}

func TestSetAndRemove(t *testing.T) {
	t.Parallel()
	for name, original := range originals {
		for way, rename := range map[string]func(string, string) error{
			"rename": os.Rename, "EBUSY": refuse(unix.EBUSY), "EXDEV": refuse(unix.EXDEV),
		} {
			t.Run(name+"/"+way, func(t *testing.T) {
				t.Parallel()
				path := hostsFile(t, original)
				h := NewHosts(path, "a")
				h.rename = rename
				for _, entries := range [][]Entry{bob, carol, bob} {
					must(t, h.Set(entries))
					if got, want := read(t, path), string(newBlock("a").set([]byte(original), entries)); got != want {
						t.Fatalf("file is %q, want %q", got, want)
					}
				}
				must(t, h.Remove())
				must(t, h.Remove())
				if got := read(t, path); got != original {
					t.Errorf("%q is left of %q", got, original)
				}
				onlyFile(t, path)
			})
		}
	}
}

func TestSetNothingRemoves(t *testing.T) {
	t.Parallel()
	path := hostsFile(t, "x")
	h := NewHosts(path, "a")
	must(t, h.Set(bob))
	must(t, h.Set(nil))
	if got := read(t, path); got != "x" {
		t.Errorf("file is %q", got)
	}
}

func TestUnchangedIsNotWritten(t *testing.T) {
	t.Parallel()
	path := hostsFile(t, "x\n")
	h := NewHosts(path, "a")
	must(t, h.Set(bob))
	h.rename = func(string, string) error { t.Error("written"); return nil }
	must(t, h.Set(bob))
	must(t, NewHosts(path, "b").Remove())
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "hosts")
	a, b := NewHosts(path, "a"), NewHosts(path, "b")
	must(t, a.Remove())
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("Remove made the file")
	}
	must(t, a.Set(bob))
	if mode := inode(t, path).Mode & 0o777; mode != 0o644 {
		t.Errorf("mode of the new file is %o", mode)
	}
	must(t, b.Set(carol))
	must(t, a.Remove())
	if s := read(t, path); !strings.Contains(s, "carol") || strings.Contains(s, "bob") {
		t.Errorf("after the first has gone: %q", s)
	}
	must(t, b.Remove())
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	onlyFile(t, path)
	if err := NewHosts(filepath.Join(path, "none", "hosts"), "a").Set(bob); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestMissingFileFilledByUser(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "hosts")
	h := NewHosts(path, "a")
	must(t, h.Set(bob))
	must(t, os.WriteFile(path, []byte(read(t, path)+"10.0.0.1 mine\n"), 0o644))
	must(t, h.Remove())
	if got := read(t, path); got != "10.0.0.1 mine\n" {
		t.Errorf("file is %q", got)
	}
}

func TestKeepsModeAndOwner(t *testing.T) {
	t.Parallel()
	for way, rename := range map[string]func(string, string) error{"rename": os.Rename, "EBUSY": refuse(unix.EBUSY)} {
		path := hostsFile(t, "x\n")
		must(t, os.Chmod(path, 0o664))
		uid, gid := os.Getuid(), os.Getgid()
		if uid == 0 {
			uid, gid = 1234, 2345
			must(t, os.Chown(path, uid, gid))
		}
		before := inode(t, path)
		h := NewHosts(path, "a")
		h.rename = rename
		must(t, h.Set(bob))
		after := inode(t, path)
		if after.Mode != before.Mode || int(after.Uid) != uid || int(after.Gid) != gid {
			t.Errorf("%s: mode %o, owner %d:%d", way, after.Mode, after.Uid, after.Gid)
		}
		if (after.Ino == before.Ino) != (way == "EBUSY") {
			t.Errorf("%s: inode %d, was %d", way, after.Ino, before.Ino)
		}
	}
}

func TestKeepsLinks(t *testing.T) {
	t.Parallel()
	path := hostsFile(t, "x\n")
	hard, soft := path+".hard", path+".soft"
	must(t, os.Symlink("hosts", soft))
	h := NewHosts(soft, "a")
	must(t, h.Set(bob))
	if info, err := os.Lstat(soft); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the symbolic link has gone: %v", err)
	}
	must(t, os.Link(path, hard))
	must(t, h.Set(carol))
	if inode(t, hard).Ino != inode(t, path).Ino || !strings.Contains(read(t, hard), "carol") {
		t.Error("the hard link has been cut")
	}
	must(t, h.Remove())
	if got := read(t, path); got != "x\n" {
		t.Errorf("file is %q", got)
	}
}

func TestLockedByAnother(t *testing.T) {
	t.Parallel()
	path := hostsFile(t, "x\n")
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	h := NewHosts(path, "a")
	h.wait = 0
	if err := h.Set(bob); !errors.Is(err, ErrBusy) {
		t.Errorf("Set = %v, want ErrBusy", err)
	}
	if got := read(t, path); got != "x\n" {
		t.Errorf("file is %q", got)
	}
}

func TestRefusesWhatIsNotAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{dir, fifo} {
		if err := NewHosts(path, "a").Set(bob); err == nil {
			t.Errorf("%s: accepted", path)
		}
	}
}

func TestRefusesInjection(t *testing.T) {
	t.Parallel()
	path := hostsFile(t, "x\n")
	addr := bob[0].Addr
	for _, entries := range [][]Entry{
		{{addr, nil}}, {{addr, []string{""}}}, {{addr, []string{"a b"}}}, {{addr, []string{"a\n10.0.0.1 bank"}}},
		{{addr, []string{"a#"}}}, {{addr, []string{"a\tb"}}}, {{addr, []string{"ä"}}}, {{addr.WithZone("x y"), []string{"a"}}},
		{{Names: []string{"a"}}}, {{addr, []string{strings.Repeat("a", 254)}}},
	} {
		if err := NewHosts(path, "a").Set(entries); err == nil {
			t.Errorf("%q: accepted", entries)
		}
	}
	for _, tag := range []string{"", "a b", "a\nb", "a#", strings.Repeat("a", 65)} {
		if NewHosts(path, tag).Set(bob) == nil || NewHosts(path, tag).Remove() == nil {
			t.Errorf("tag %q: accepted", tag)
		}
	}
	if got := read(t, path); got != "x\n" {
		t.Errorf("file is %q", got)
	}
}

// TestConcurrentAgents lets agents that share a file change it at once, half
// of them by rename and half in place. In each moment each agent's block is
// whole for the agent itself, and at the end nothing is left.
func TestConcurrentAgents(t *testing.T) {
	t.Parallel()
	const agents, rounds = 6, 12
	for _, original := range []string{"127.0.0.1 localhost\n", "127.0.0.1 localhost", "missing"} {
		path := filepath.Join(t.TempDir(), "hosts")
		if original != "missing" {
			must(t, os.WriteFile(path, []byte(original), 0o644))
		}
		var wg sync.WaitGroup
		for i := range agents {
			wg.Go(func() {
				h := NewHosts(path, fmt.Sprintf("agent%d", i))
				h.wait = time.Minute
				if i%2 == 1 {
					h.rename = refuse(unix.EBUSY)
				}
				mine := []Entry{{bob[0].Addr, []string{fmt.Sprintf("peer%d.pilot.internal", i)}}}
				for r := range rounds {
					if err := h.Set(mine); err != nil {
						t.Error(err)
						return
					}
					if r%3 == 2 {
						if err := h.Remove(); err != nil {
							t.Error(err)
							return
						}
					}
				}
				if err := h.Set(mine); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		all := read(t, path)
		if original != "missing" && !strings.HasPrefix(all, original) {
			t.Errorf("the user's text has changed: %q", all)
		}
		for i := range agents {
			if n := strings.Count(all, fmt.Sprintf("peer%d.pilot.internal # pilot:agent%d\n", i, i)); n != 1 {
				t.Errorf("agent %d has %d lines:\n%s", i, n, all)
			}
		}
		for i := range agents {
			wg.Go(func() {
				h := NewHosts(path, fmt.Sprintf("agent%d", i))
				h.wait = time.Minute
				if err := h.Remove(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if original == "missing" {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the file is still there: %v, %q", err, read(t, path))
			}
		} else if got := read(t, path); got != original {
			t.Errorf("%q is left of %q", got, original)
		}
	}
}
