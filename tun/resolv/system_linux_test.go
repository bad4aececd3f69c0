package resolv

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/tun"
)

// over mounts a new file with content over path, in the namespace of the test.
func over(t *testing.T, path, content string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte(content), 0o644))
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	must(t, unix.Mount(file, path, "", unix.MS_BIND, ""))
}

// getent asks glibc, as programs do. It returns "" for a name that there is not.
func getent(t *testing.T, database, key string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "getent", database, key)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() == 2 {
		return ""
	}
	must(t, err)
	return strings.Join(strings.Fields(string(out)), " ")
}

// TestGetentHosts: with the hosts file the resolver of glibc knows the names.
func TestGetentHosts(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skipf("needs glibc's getent: %v", err)
	}
	if !inMountNamespace(t) {
		return
	}
	over(t, "/etc/hosts", "127.0.0.1 localhost\n")
	over(t, "/etc/nsswitch.conf", "hosts: files\n")
	m := NewManager(Config{Mode: HostFile, HostsFile: "/etc/hosts", Tag: "a"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx, nil, func() []Entry { return bob })
	}()
	(&rig{Manager: m}).until(t, HostFile)
	const want = "fd50:494c:4f54::a91c:33f0 bob.pilot.internal"
	for _, key := range []string{"bob.pilot.internal", "fd50:494c:4f54::a91c:33f0"} {
		if got := getent(t, "hosts", key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if got := getent(t, "hosts", "mallory.pilot.internal"); got != "" {
		t.Errorf("mallory is %q", got)
	}
	cancel()
	<-done
	if got := getent(t, "hosts", "bob.pilot.internal"); got != "" || read(t, "/etc/hosts") != "127.0.0.1 localhost\n" {
		t.Errorf("afterwards bob is %q", got)
	}
}

// resolvedProgram is systemd-resolved itself, or "". PILOT_RESOLVED names one
// that is unpacked and not installed, since its package takes over resolv.conf.
func resolvedProgram() string {
	for _, path := range []string{os.Getenv("PILOT_RESOLVED"), "/lib/systemd/systemd-resolved", "/usr/lib/systemd/systemd-resolved"} {
		if _, err := os.Stat(path); path != "" && err == nil {
			return path
		}
	}
	return ""
}

// TestRealResolved starts a message bus and systemd-resolved itself by hand, in
// namespaces of their own, with a TUN whose packets the resolver of package dns
// answers: getent finds a peer through all of it, and the link is as it was
// afterwards.
func TestRealResolved(t *testing.T) {
	t.Parallel()
	program := resolvedProgram()
	switch {
	case program == "":
		t.Skip("needs systemd-resolved; PILOT_RESOLVED=PATH names one that is not installed")
	case os.Geteuid() != 0:
		skip(t, "needs root")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS|unix.CLONE_NEWNET) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	must(t, os.MkdirAll("/run/systemd/resolve", 0o755))
	must(t, os.Chown("/run/systemd/resolve", 65432, 65432))
	over(t, "/etc/passwd", read(t, "/etc/passwd")+"systemd-resolve:x:65432:65432::/:/usr/sbin/nologin\n")
	over(t, "/etc/group", read(t, "/etc/group")+"systemd-resolve:x:65432:\n")
	over(t, "/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0\n")
	over(t, "/etc/nsswitch.conf", "passwd: files\nhosts: files dns\n")
	over(t, "/etc/hosts", "127.0.0.1 localhost\n")
	must(t, os.Mkdir("/run/bus", 0o755))
	bus := startBus(t, "/run/bus")
	must(t, os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)) // in a process of its own
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_TARGET=console")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed, as it says
	})

	own := ipam.Addr{Node: 0x10002}
	device, err := tun.Open(tun.Config{Name: "pilot0", Address: netip.PrefixFrom(own.ULA(), 128), Route: ipam.Prefix(), MTU: 1408})
	must(t, err)
	defer device.Close()
	peer := ipam.Addr{Node: 0xa91c33f0}
	zone := dns.NewZone()
	zone.Set([]dns.Entry{{Name: "bob", Addr: peer}})
	go answerPackets(device, dns.NewResponder(zone))

	m := NewManager(Config{
		Mode: Auto, Device: "pilot0", Server: dns.Address(), Domain: dns.Domain, Reverse: dns.ReverseDomain,
		Probe: dns.ServerName, HostsFile: "/etc/hosts", Tag: "a", Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx, nil, func() []Entry { return nil })
	}()
	g := &rig{Manager: m}
	g.until(t, Resolved)
	const want = "fd50:494c:4f54::a91c:33f0 bob.pilot.internal"
	for _, key := range []string{"bob.pilot.internal", "fd50:494c:4f54::a91c:33f0", "BOB.pilot.internal"} {
		if got := getent(t, "hosts", key); !strings.EqualFold(got, want) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if list, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", "bob.pilot.internal"); err != nil || len(list) != 1 || list[0] != peer.ULA() {
		t.Errorf("Go finds bob at %v, %v", list, err)
	}
	begin := time.Now()
	if got := getent(t, "ahostsv4", "bob.pilot.internal"); got != "" || time.Since(begin) > 4*time.Second { // a question that nobody answers takes 5 s
		t.Errorf("bob by IPv4 is %q after %v", got, time.Since(begin))
	}
	if got := getent(t, "hosts", "mallory.pilot.internal"); got != "" {
		t.Errorf("mallory is %q", got)
	}
	zone.Set([]dns.Entry{{Name: "bob", Addr: peer}, {Name: "carol", Addr: ipam.Addr{Node: 0x30000}}})
	if got := getent(t, "hosts", "carol.pilot.internal"); got != "fd50:494c:4f54::3:0 carol.pilot.internal" {
		t.Errorf("carol, trusted since, is %q", got)
	}
	cancel()
	<-done
	if got := getent(t, "hosts", "bob.pilot.internal"); got != "" {
		t.Errorf("afterwards bob is %q", got)
	}
}

// answerPackets stands for the packet path of a node.
func answerPackets(device tun.Device, r *dns.Responder) {
	packets := make([]tun.Packet, device.BatchSize())
	for {
		n, err := device.Read(packets)
		if err != nil {
			return
		}
		for _, p := range packets[:n] {
			if reply := r.Reply(nil, p.Data); len(reply) > 0 {
				// As lost on its way: the resolver asks again.
				_ = device.Write([]tun.Packet{{Data: reply}})
			}
		}
	}
}
