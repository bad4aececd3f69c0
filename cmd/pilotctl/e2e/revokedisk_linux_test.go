package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/overlay"
)

// A disk is a small ext4 file system under the state of an agent. Its backing is a
// file in memory.
type disk struct{ at, memory, device string }

// disk gives the agent one, before it is up; false if this machine has no loop device.
func (a *agent) disk(t *testing.T) (*disk, bool) {
	t.Helper()
	d := &disk{at: a.state, memory: a.state + ".memory"}
	id, err := os.ReadFile(filepath.Join(a.state, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.memory, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"mount -t tmpfs -o size=24m tmpfs " + d.memory,
		"truncate -s 16M " + d.memory + "/image",
		"mkfs.ext4 -q -F " + d.memory + "/image",
		"mount -o loop,errors=remount-ro " + d.memory + "/image " + d.at,
	} {
		if out, err := exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; "+line).CombinedOutput(); err != nil {
			t.Logf("no disk of its own: %s: %v: %s", line, err, out)
			d.leave()
			return nil, false
		}
	}
	t.Cleanup(func() {
		a.lab.killAll(t) // each has the mounts in a namespace of its own
		d.leave()
	})
	var s unix.Stat_t
	if err := unix.Stat(d.at, &s); err != nil {
		t.Fatal(err)
	}
	link, err := os.Readlink("/sys/dev/block/" + itoa(int(unix.Major(uint64(s.Dev)))) + ":" + itoa(int(unix.Minor(uint64(s.Dev)))))
	if err != nil {
		t.Fatal(err)
	}
	d.device = filepath.Base(link)
	if err := os.WriteFile(filepath.Join(a.state, "identity"), id, 0o600); err != nil {
		t.Fatal(err)
	}
	return d, true
}

func (d *disk) leave() {
	for _, at := range []string{d.at, d.memory} {
		unix.Unmount(at, unix.MNT_DETACH)
	}
}

// fill leaves no free block.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	for i, block := range []int{1 << 16, 1 << 12, 1} { // the last into the rest of a block
		f, err := os.OpenFile(filepath.Join(d.at, "filler"+itoa(i)), os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o600)
		for err == nil {
			_, err = f.Write(make([]byte, block))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		f.Close()
	}
}

func (d *disk) empty(t *testing.T) {
	t.Helper()
	old, _ := filepath.Glob(filepath.Join(d.at, "filler*"))
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// fail makes the file system read-only under those who write to it, as the kernel
// does when it finds the disk failing.
func (d *disk) fail(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/sys/fs/ext4/"+d.device+"/trigger_fs_error", []byte("test"), 0); err != nil {
		t.Fatal(err)
	}
}

// Datagrams are a stream of UDP from alice to bob, whose arrival the kernel notes.
type datagrams struct {
	sent, got atomic.Int64
	last      atomic.Int64 // arrival, unix nanoseconds
}

func (l *lab) datagrams(t *testing.T, alice, bob *agent) *datagrams {
	t.Helper()
	s := &datagrams{}
	in := l.listenUDP(t, "b1", "[::]:7000")
	raw, err := in.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
		err = errors.Join(err, failed)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf, control := make([]byte, 2048), make([]byte, 256)
		for {
			_, n, _, _, err := in.ReadMsgUDP(buf, control)
			if err != nil {
				return
			}
			list, err := syscall.ParseSocketControlMessage(control[:n])
			if err == nil && len(list) > 0 && len(list[0].Data) >= 16 {
				sec, nsec := binary.NativeEndian.Uint64(list[0].Data), binary.NativeEndian.Uint64(list[0].Data[8:])
				s.last.Store(int64(sec)*int64(time.Second) + int64(nsec))
				s.got.Add(1)
			}
		}
	}()
	out := l.dial(t, "a1", "udp", bob.reach(t, "7000"))
	go func() {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := out.Write(make([]byte, 100)); errors.Is(err, net.ErrClosed) {
				return
			}
			s.sent.Add(1)
		}
	}()
	return s
}

// TestHostileRevoke: when a revocation has returned nothing passes any more. It
// holds when the agent is killed at that moment, and on a disk without a free
// block; on a disk that takes nothing at all it is in force, and the user is told
// that it will not outlive the agent.
func TestHostileRevoke(t *testing.T) {
	t.Parallel()
	l := newLab(t, "none", "none")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	d, disked := bob.disk(t)
	alice.up(t, s)
	carol.up(t, s)
	bob.up(t, s)
	const ports = "7000/udp,8080"
	site := l.website(t, "b1", "[::]:8080", 1)
	again := func(t *testing.T) *datagrams {
		t.Helper()
		trust(t, alice, bob, ports)
		site.download(t, alice, bobURL, 1)
		direct(t, alice, bob)
		flow := l.datagrams(t, alice, bob)
		within(t, 10*time.Second, "the stream flows", func() bool { return flow.got.Load() > 500 })
		return flow
	}
	// shut wants that nothing came after the moment, though much was sent.
	shut := func(t *testing.T, flow *datagrams, returned time.Time) {
		t.Helper()
		sent := flow.sent.Load()
		within(t, 10*time.Second, "alice goes on sending", func() bool { return flow.sent.Load() > sent+1000 })
		late := time.Unix(0, flow.last.Load()).Sub(returned)
		t.Logf("the last packet came %v after the revocation had returned", late)
		if late > 100*time.Millisecond { // the goal is 1 ms; other tests take the processors away
			t.Error("too late")
		}
	}
	// gone wants that a restart does not bring alice back.
	gone := func(t *testing.T) {
		t.Helper()
		bob.pilot(t, "up")
		if p := bob.peer(t, "alice"); p.Trust != "" {
			t.Errorf("alice is a peer again: %+v", p)
		}
		if o := alice.run(t, "curl", "-sS", "-m", "2", bobURL); o.status == 0 {
			t.Error("curl works again")
		}
	}

	t.Run("killed at once", func(t *testing.T) {
		flow := again(t)
		curl := alice.command(t.Context(), "curl", "-sS", "--limit-rate", "1M", "-m", "4", "-o", "/dev/null", bobURL+"100")
		if err := curl.Start(); err != nil {
			t.Fatal(err)
		}
		pid, client := bob.daemon(), bob.client()
		if err := client.Revoke(t.Context(), "alice"); err != nil {
			t.Fatal(err)
		}
		returned := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		shut(t, flow, returned)
		if err := curl.Wait(); err == nil {
			t.Error("the download under way came to its end")
		}
		within(t, 5*time.Second, "bob is dead", func() bool { return bob.daemon() == 0 })
		gone(t)
	})
	t.Run("block", func(t *testing.T) {
		trust(t, carol, bob, ports)
		bob.pilot(t, "trust", "block", "carol")
		bob.kill(t)
		bob.pilot(t, "up")
		dropped := func() int {
			log, err := os.ReadFile(filepath.Join(bob.state, "daemon.log"))
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Count(log, []byte("the key is blocked"))
		}
		before := dropped()
		carol.pilot(t, "trust", "request", bob.id(t).Contact, "--reason", "please", "--ports", "8080")
		within(t, 20*time.Second, "her request is dropped", func() bool { return dropped() > before })
		if n := len(bob.status(t).Requests); n != 0 {
			t.Errorf("%d requests wait", n)
		}
	})
	if !disked {
		return
	}
	t.Run("full disk", func(t *testing.T) {
		flow := again(t)
		d.fill(t)
		pid := bob.daemon()
		if err := bob.client().Revoke(t.Context(), "alice"); err != nil {
			t.Errorf("on a full disk: %v", err)
		}
		returned := time.Now()
		syscall.Kill(pid, syscall.SIGKILL)
		shut(t, flow, returned)
		within(t, 5*time.Second, "bob is dead", func() bool { return bob.daemon() == 0 })
		gone(t) // the disk is still full
		d.empty(t)
		bob.kill(t)
		gone(t)
	})
	t.Run("read-only disk", func(t *testing.T) {
		flow := again(t)
		d.fail(t)
		err := bob.client().Revoke(t.Context(), "alice")
		returned := time.Now()
		if e := new(overlay.Error); !errors.As(err, &e) || !strings.Contains(e.Error(), "in force") {
			t.Errorf("the user is told %v", err)
		}
		if w := strings.Join(bob.status(t).Warnings, "\n"); !strings.Contains(w, "lost with a restart") {
			t.Errorf("status warns of %q", w)
		}
		shut(t, flow, returned)
		if slices.ContainsFunc(bob.status(t).Peers, func(p overlay.Peer) bool { return p.Name == "alice" }) {
			t.Error("alice is a peer")
		}
	})
}
