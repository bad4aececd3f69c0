package crashtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	dirVariable = "PILOT_CRASHTEST_DIR"
	argVariable = "PILOT_CRASHTEST_ARG"
	ackFile     = 3 // descriptor of the traced process by which it acknowledges
)

// Dir is the directory in which the traced process works; empty in any other.
func Dir() string { return os.Getenv(dirVariable) }

// Arg is the number that Record was called with.
func Arg() int {
	n, _ := strconv.Atoi(os.Getenv(argVariable))
	return n
}

// Ack tells, in the traced process, that step i is promised to be durable.
func Ack(i int) {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(i))
	if _, err := syscall.Write(ackFile, b[:]); err != nil {
		panic(err)
	}
}

// The traced process tells by numbers below zero what is to fail.
const (
	healNow = -1
	failAll = -2
	failOne = -3 // and less: so many syncs pass before

	failWrite = -1 << 20 // and less: so many writes do
)

// FailSync makes, in the traced process, one sync of a file or directory fail with EIO
// as a failing disk does: the one after the next n. What was written before is seen by
// whoever reads the file, but is not durable.
func FailSync(n int) { Ack(failOne - n) }

// FailWrite makes, in the traced process, one write fail with EIO: the one after the
// next n. Nothing of it is written.
func FailWrite(n int) { Ack(failWrite - n) }

// Fail is FailSync of half of n, or FailWrite if n is odd: counted up, each sync and
// each write fails in turn.
func Fail(n int) {
	if n%2 == 0 {
		FailSync(n / 2)
	} else {
		FailWrite(n / 2)
	}
}

// FailAll makes every write and sync fail with EIO from now on.
func FailAll() { Ack(failAll) }

// Heal ends what the others began.
func Heal() { Ack(healNow) }

// Record runs the calling test once more, traced, in an empty directory, with the
// number arg for it, and returns what it did there. It skips the test where
// processes cannot be traced, and fails it there if PILOT_REQUIRE_ROOT is 1.
func Record(t testing.TB, arg int) *Log {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	out, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	name := strings.ReplaceAll("^"+t.Name()+"$", "/", "$/^")
	c := exec.Command(os.Args[0], "-test.run="+name, "-test.timeout=2m")
	c.Env = append(os.Environ(), dirVariable+"="+dir, argVariable+"="+strconv.Itoa(arg), "GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1", "GOCOVERDIR="+t.TempDir())
	c.ExtraFiles, c.Stdout, c.Stderr = []*os.File{null}, out, out
	r := newRecorder(dir)
	err = r.run(c)
	switch {
	case errors.Is(err, errNoTrace) && os.Getenv("PILOT_REQUIRE_ROOT") != "1":
		t.Skip(err)
	case err != nil:
		text, _ := os.ReadFile(out.Name())
		t.Fatalf("%v\n%s", err, text)
	}
	return &Log{ops: r.ops, root: r.root}
}

var errNoTrace = errors.New("crashtest: this process may not trace another")

// A node is a file or a directory of the traced program.
type node struct {
	path  string // now; for messages
	names map[string]*node
}

// A recorder follows one process.
type recorder struct {
	dir   string
	pid   int
	root  *node
	ops   []op
	files map[int]*node // open descriptors below dir
	calls map[int]*call // by thread: the call that it is in

	fails     bool // every write and sync
	fail      int  // the sync that does, counted from 1; 0: none
	failWrite int  // the write that does
}

// A call is a system call that has begun.
type call struct {
	number uint64
	args   [6]uint64
	begin  int    // how many ops were recorded
	path   string // of its first name
	to     string // of its second
	failed bool   // it is not made, and fails
}

func newRecorder(dir string) *recorder {
	return &recorder{dir: dir, root: &node{path: dir, names: map[string]*node{}}, files: map[int]*node{}, calls: map[int]*call{}}
}

// run traces the program until it ends. The thread that does is spent on it.
func (r *recorder) run(c *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel knows the tracer by its thread
		done <- r.trace(c)
	}()
	return <-done
}

func (r *recorder) trace(c *exec.Cmd) error {
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	r.pid = c.Process.Pid
	defer c.Process.Release()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(r.pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return fmt.Errorf("%w: %v, status %x", errNoTrace, err, ws)
	}
	const options = syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | syscall.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(r.pid, options); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	if err := syscall.PtraceSyscall(r.pid, 0); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	for {
		tid, err := syscall.Wait4(-1, &ws, syscall.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("crashtest: wait: %w", err)
		}
		if ws.Exited() || ws.Signaled() {
			delete(r.calls, tid)
			if tid != r.pid {
				continue
			}
			if ws.Signaled() || ws.ExitStatus() != 0 {
				return fmt.Errorf("crashtest: the traced program ended with status %x", int(ws))
			}
			return nil
		}
		signal := 0
		switch stop := ws.StopSignal(); {
		case stop == syscall.SIGTRAP|0x80:
			// A thread may be killed in its stop, when another one ends the program.
			if err := r.stopped(tid); err != nil && !errors.Is(err, syscall.ESRCH) {
				syscall.Kill(r.pid, syscall.SIGKILL)
				return err
			}
		case stop == syscall.SIGTRAP, stop == syscall.SIGSTOP: // of a new thread or program
		default:
			signal = int(stop)
		}
		if err := syscall.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("crashtest: resume: %w", err)
		}
	}
}

// callInfo is struct ptrace_syscall_info (ptrace(2)).
type callInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	data [8]uint64 // entry: number, arguments; exit: result, whether it is an error
}

const (
	infoEntry = 1
	infoExit  = 2
)

func (r *recorder) stopped(tid int) error {
	var info callInfo
	const getSyscallInfo = 0x420e
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); e != 0 {
		return fmt.Errorf("%w: %w", errNoTrace, e)
	}
	switch info.op {
	case infoEntry:
		c := &call{number: info.data[0], begin: len(r.ops)}
		copy(c.args[:], info.data[1:])
		r.calls[tid] = c
		if r.fault(c) {
			c.failed = true
			return dropCall(tid)
		}
		return r.begins(c)
	case infoExit:
		c := r.calls[tid]
		delete(r.calls, tid)
		if c != nil && c.failed {
			if n := r.files[int(int32(c.args[0]))]; n != nil && (c.number == unix.SYS_FSYNC || c.number == unix.SYS_FDATASYNC) {
				r.ops = append(r.ops, op{kind: opLost, node: n, begin: c.begin})
			}
			return answerCall(tid, syscall.EIO)
		}
		if c == nil || int64(info.data[0]) < 0 {
			return nil
		}
		return r.ended(c, int64(info.data[0]))
	}
	return nil
}

// begins looks at a call before it runs.
func (r *recorder) begins(c *call) (err error) {
	switch c.number {
	case unix.SYS_WRITE:
		if int(int32(c.args[0])) == ackFile {
			b, err := r.read(c.args[1], 4)
			if err != nil {
				return err
			}
			r.told(int(int32(binary.NativeEndian.Uint32(b))))
		}
	case unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		c.path, err = r.pathAt(c.args[0], c.args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		if c.path, err = r.pathAt(c.args[0], c.args[1]); err == nil {
			c.to, err = r.pathAt(c.args[2], c.args[3])
		}
	}
	return err
}

// told takes a number that the process wrote.
func (r *recorder) told(n int) {
	switch {
	case n >= 0:
		r.ops = append(r.ops, op{kind: opAck, ack: n})
	case n == healNow:
		r.fails, r.fail, r.failWrite = false, 0, 0
	case n == failAll:
		r.fails = true
	case n <= failWrite:
		r.failWrite = failWrite - n + 1
	default:
		r.fail = failOne - n + 1
	}
}

// fault says whether a call is to fail.
func (r *recorder) fault(c *call) bool {
	if r.files[int(int32(c.args[0]))] == nil {
		return false
	}
	switch c.number {
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if r.fail == 0 {
			return r.fails
		}
		r.fail--
		return r.fails || r.fail == 0
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE:
		if r.failWrite == 0 {
			return r.fails
		}
		r.failWrite--
		return r.fails || r.failWrite == 0
	}
	return false
}

// ended records a call that succeeded.
func (r *recorder) ended(c *call, result int64) error {
	fd := int(int32(c.args[0]))
	switch c.number {
	case unix.SYS_OPENAT, unix.SYS_OPENAT2:
		return r.opened(c, int(result))
	case unix.SYS_CLOSE:
		delete(r.files, fd)
	case unix.SYS_FCNTL:
		if n := r.files[fd]; n != nil && (c.args[1] == unix.F_DUPFD_CLOEXEC || c.args[1] == unix.F_DUPFD) {
			r.files[int(result)] = n
		}
	case unix.SYS_UNLINKAT:
		return r.unlinked(c.path)
	case unix.SYS_MKDIRAT:
		return r.created(c.path, &node{path: c.path, names: map[string]*node{}})
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return r.renamed(c.path, c.to, true)
	case unix.SYS_LINKAT:
		return r.renamed(c.path, c.to, false)
	}
	if n := r.files[fd]; n != nil {
		return r.changed(c, fd, n, result)
	}
	return nil
}

// changed records what was done with an open file.
func (r *recorder) changed(c *call, fd int, n *node, result int64) error {
	switch c.number {
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		at := int64(c.args[3])
		if c.number == unix.SYS_WRITE {
			pos, err := r.position(fd)
			if err != nil {
				return err
			}
			at = pos - result
		}
		data, err := r.read(c.args[1], int(result))
		if err != nil {
			return err
		}
		r.ops = append(r.ops, op{kind: opWrite, node: n, at: at, data: data})
	case unix.SYS_FTRUNCATE:
		r.ops = append(r.ops, op{kind: opTruncate, node: n, at: int64(c.args[1])})
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		r.ops = append(r.ops, op{kind: opSync, node: n, begin: c.begin})
	case unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_FALLOCATE, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_SPLICE:
		return fmt.Errorf("crashtest: call %d on %s is not understood", c.number, n.path)
	}
	return nil
}

// opened notes a descriptor, and the file if it is new.
func (r *recorder) opened(c *call, fd int) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", r.pid, fd))
	if err != nil {
		return fmt.Errorf("crashtest: %w", err)
	}
	if !r.inside(path) {
		delete(r.files, fd)
		return nil
	}
	n := r.find(path)
	if n == nil {
		n = &node{path: path}
		if err := r.created(path, n); err != nil {
			return err
		}
	} else if n.names == nil && c.number == unix.SYS_OPENAT && c.args[2]&unix.O_TRUNC != 0 {
		r.ops = append(r.ops, op{kind: opTruncate, node: n})
	}
	r.files[fd] = n
	return nil
}

func (r *recorder) created(path string, n *node) error {
	dir, name, err := r.parent(path)
	if err != nil || dir == nil {
		return err
	}
	dir.names[name] = n
	r.ops = append(r.ops, op{kind: opName, node: n, dir: dir, name: name})
	return nil
}

func (r *recorder) unlinked(path string) error {
	dir, name, err := r.parent(path)
	if err != nil || dir == nil {
		return err
	}
	delete(dir.names, name)
	r.ops = append(r.ops, op{kind: opName, dir: dir, name: name})
	return nil
}

// renamed records that a file has another name, and no longer the old one if it moved.
func (r *recorder) renamed(from, to string, moved bool) error {
	dir, name, err := r.parent(to)
	if err != nil || dir == nil {
		return err
	}
	n := r.find(from)
	if n == nil {
		return fmt.Errorf("crashtest: rename of %s, which is not known", from)
	}
	o := op{kind: opName, node: n, dir: dir, name: name}
	if moved {
		o.fromDir, o.fromName, err = r.parent(from)
		if err != nil {
			return err
		}
		delete(o.fromDir.names, o.fromName)
	}
	dir.names[name], n.path = n, to
	r.ops = append(r.ops, o)
	return nil
}

func (r *recorder) inside(path string) bool {
	return path == r.dir || strings.HasPrefix(path, r.dir+"/")
}

func (r *recorder) find(path string) *node {
	n := r.root
	if path == r.dir {
		return n
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(path, r.dir+"/"), "/") {
		if n == nil || n.names == nil {
			return nil
		}
		n = n.names[part]
	}
	return n
}

// parent returns the directory of a path; nil if that is none of ours.
func (r *recorder) parent(path string) (*node, string, error) {
	if !r.inside(path) || path == r.dir {
		return nil, "", nil
	}
	dir := r.find(filepath.Dir(path))
	if dir == nil || dir.names == nil {
		return nil, "", fmt.Errorf("crashtest: the directory of %s is not known", path)
	}
	return dir, filepath.Base(path), nil
}

// pathAt is the name at an address, made absolute.
func (r *recorder) pathAt(dir, address uint64) (string, error) {
	var text []byte
	for {
		b, err := r.read(address, int(64-address%64)) // never beyond a page
		if err != nil {
			return "", err
		}
		if i := slices.Index(b, 0); i >= 0 {
			text = append(text, b[:i]...)
			break
		}
		text, address = append(text, b...), address+uint64(len(b))
	}
	if filepath.IsAbs(string(text)) {
		return filepath.Clean(string(text)), nil
	}
	base := fmt.Sprintf("/proc/%d/cwd", r.pid)
	if fd := int(int32(dir)); fd != unix.AT_FDCWD {
		base = fmt.Sprintf("/proc/%d/fd/%d", r.pid, fd)
	}
	base, err := os.Readlink(base)
	if err != nil {
		return "", fmt.Errorf("crashtest: %w", err)
	}
	return filepath.Join(base, string(text)), nil
}

// read copies memory of the process.
func (r *recorder) read(address uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	if n == 0 {
		return b, nil
	}
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(n)
	got, err := unix.ProcessVMReadv(r.pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(address), Len: n}}, 0)
	if err != nil || got != n {
		return nil, fmt.Errorf("%w: read its memory: %d of %d bytes, %w", errNoTrace, got, n, err)
	}
	return b, nil
}

// position is where the next write to a descriptor goes.
func (r *recorder) position(fd int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", r.pid, fd))
	if err != nil {
		return 0, fmt.Errorf("crashtest: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(first, "pos:")), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("crashtest: %w", err)
	}
	return n, nil
}
