package lab

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if err := probe.Run(); err != nil || os.Geteuid() != 0 {
		if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
			t.Fatalf("PILOT_REQUIRE_ROOT=1, but namespaces are not to be had: %v", err)
		}
		t.Skipf("this needs root and the right to make namespaces: %v", err)
	}
}

func host(t *testing.T, name string) *Host {
	t.Helper()
	h, err := NewHost(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// listen opens a UDP socket on a host.
func listen(t *testing.T, h *Host, addr string) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	must(t, h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", addr)
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// arrives sends a datagram and says where it came from, or nothing if it did not come.
func arrives(t *testing.T, from net.PacketConn, to string, at net.PacketConn) string {
	t.Helper()
	addr, err := net.ResolveUDPAddr("udp4", to)
	must(t, err)
	_, err = from.WriteTo([]byte("hello"), addr)
	must(t, err, at.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	_, source, err := at.ReadFrom(make([]byte, 64))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	must(t, err)
	return source.String()
}

// TestRouter sends datagrams through a NAT router, both ways, and cuts a way.
func TestRouter(t *testing.T) {
	needRoot(t)
	inside, neighbour, router, core, outside := host(t, "inside"), host(t, "neighbour"), host(t, "router"), host(t, "core"), host(t, "outside")
	prefix := netip.MustParsePrefix
	must(t,
		Wire(router, "lan1", inside, "eth0"), Wire(router, "lan2", neighbour, "eth0"), router.Bridge("lan", "lan1", "lan2"),
		Wire(core, "a", router, "wan"), Wire(core, "b", outside, "eth0"), core.Forward(),
		inside.Address("eth0", prefix("10.1.0.2/24")), neighbour.Address("eth0", prefix("10.1.0.3/24")), router.Address("lan", prefix("10.1.0.1/24")),
		router.Address("wan", prefix("198.51.100.2/24")), core.Address("a", prefix("198.51.100.1/24")),
		core.Address("b", prefix("192.0.2.1/24")), outside.Address("eth0", prefix("192.0.2.10/24")),
		inside.Gateway(netip.MustParseAddr("10.1.0.1")), router.Gateway(netip.MustParseAddr("198.51.100.1")),
		outside.Gateway(netip.MustParseAddr("192.0.2.1")), router.Masquerade("wan"),
	)
	in, out := listen(t, inside, ":4000"), listen(t, outside, ":5000")
	if got := arrives(t, out, "198.51.100.2:4000", in); got != "" {
		t.Errorf("an unasked datagram came in from %s", got)
	}
	if got := arrives(t, in, "192.0.2.10:5000", out); got != "198.51.100.2:4000" {
		t.Errorf("a datagram went out as %q, want the router's address and the same port", got)
	}
	if got := arrives(t, out, "198.51.100.2:4000", in); got != "192.0.2.10:5000" {
		t.Errorf("the answer came from %q", got)
	}
	other := listen(t, outside, ":5001")
	if got := arrives(t, other, "198.51.100.2:4000", in); got != "" {
		t.Errorf("an unasked datagram from another port came in from %s", got)
	}
	if got := arrives(t, listen(t, neighbour, ":4000"), "10.1.0.2:4000", in); got != "10.1.0.3:4000" {
		t.Errorf("a neighbour's datagram came from %q", got)
	}
	restore, err := core.Sever("a", "b")
	must(t, err)
	if got := arrives(t, in, "192.0.2.10:5000", out); got != "" {
		t.Errorf("a datagram came through a cut wire from %s", got)
	}
	must(t, restore())
	if got := arrives(t, in, "192.0.2.10:5000", out); got != "198.51.100.2:4000" {
		t.Errorf("after the cut a datagram went out as %q", got)
	}
}

// TestCover sees that only the host has the private file.
func TestCover(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path, own, link := filepath.Join(dir, "file"), filepath.Join(dir, "own"), filepath.Join(dir, "link")
	must(t, os.WriteFile(path, []byte("machine"), 0o600), os.WriteFile(own, []byte("host"), 0o600), os.Symlink(path, link))
	h, other := host(t, "h"), host(t, "other")
	must(t, h.Cover(link, own))
	read := func(h *Host) string {
		var out bytes.Buffer
		cmd := exec.Command("cat", path)
		cmd.Stdout = &out
		must(t, h.Start(cmd), cmd.Wait())
		return out.String()
	}
	if got := read(h); got != "host" {
		t.Errorf("the host reads %q", got)
	}
	if got := read(other); got != "machine" {
		t.Errorf("another host reads %q", got)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "machine" {
		t.Errorf("the machine reads %q, %v", got, err)
	}
	if err := h.Cover(filepath.Join(dir, "none"), own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("covering what does not exist: %v", err)
	}
}
