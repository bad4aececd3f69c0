package resolv

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/tun"
)

// TestRealDebianResolvconf and TestRealOpenresolv run the programs of the Debian
// packages, unpacked and not installed, in namespaces of their own: programs
// find a peer, and a name that another server knows, as long as the agent runs,
// and the latter after it was killed.
func TestRealDebianResolvconf(t *testing.T) {
	t.Parallel()
	testRealResolvconf(t, os.Getenv("PILOT_RESOLVCONF"), "eth0.dhclient")
}

func TestRealOpenresolv(t *testing.T) {
	t.Parallel()
	testRealResolvconf(t, os.Getenv("PILOT_OPENRESOLV"), "eth0")
}

const (
	outsideServer = "192.0.2.53"
	realTag       = "abcdefghijklmnopqrstuvwxyz"
)

func testRealResolvconf(t *testing.T, tree, link string) {
	t.Helper()
	switch {
	case os.Getenv("PILOT_TEST_AGENT") == "1":
		runRealAgent(t)
		return
	case tree == "":
		t.Skip("needs the unpacked package; PILOT_RESOLVCONF and PILOT_OPENRESOLV name the directories")
	case os.Geteuid() != 0:
		skip(t, "needs root")
	}
	if !inNamespaces(t, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWPID) {
		return
	}
	must(t, unix.Mount("proc", "/proc", "proc", 0, "")) // here we are process 1
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	must(t, netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(outsideServer), Mask: net.CIDRMask(32, 32)}}))
	asked := startOutside(t)
	// A default route makes packets to an address without a route of its own
	// vanish.
	device, err := tun.Open(tun.Config{
		Name: "uplink0", Address: netip.MustParsePrefix("2001:db8::2/128"), Route: netip.MustParsePrefix("::/0"), MTU: 1408,
	})
	must(t, err)
	t.Cleanup(func() { must(t, device.Close()) })
	install(t, tree)
	tell := func(content string) {
		t.Helper()
		cmd := exec.Command("/sbin/resolvconf", "-a", link)
		cmd.Stdin = strings.NewReader(content)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Logf("resolvconf -a %s: %v\n%s", link, err, out)
		}
		if got := read(t, "/etc/resolv.conf"); !strings.Contains(got, outsideServer) {
			t.Fatalf("resolv.conf without an agent is %q", got)
		}
	}
	tell("nameserver " + outsideServer + "\n")
	original := read(t, "/etc/resolv.conf")
	t.Logf("resolv.conf without an agent:\n%s", original)

	agent := startRealAgent(t)
	agent.until(t, "resolvconf")
	t.Logf("resolv.conf with it:\n%s", read(t, "/etc/resolv.conf"))
	checkNames(t, true)
	if got := asked(); slices.ContainsFunc(got, func(name string) bool { return strings.Contains(name, "pilot.internal") }) {
		t.Errorf("the other server was asked for %q", got)
	}
	agent.end(t, syscall.SIGTERM)
	if got := read(t, "/etc/resolv.conf"); got != original || guarded(t) {
		t.Errorf("afterwards resolv.conf is %q, was %q; guard %v", got, original, guarded(t))
	}
	checkNames(t, false)

	// Killed: the server stays in the file, and costs no lookup any time.
	agent = startRealAgent(t)
	agent.until(t, "resolvconf")
	agent.end(t, syscall.SIGKILL)
	if got := read(t, "/etc/resolv.conf"); got == original || !guarded(t) {
		t.Errorf("killed: resolv.conf is %q, guard %v", got, guarded(t))
	}
	checkNames(t, false)
	agent = startRealAgent(t)
	agent.until(t, "resolvconf")
	checkNames(t, true)
	// With three others in it ours would cost the last one.
	tell("nameserver " + outsideServer + "\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n")
	must(t, agent.cmd.Process.Signal(syscall.SIGHUP)) // look now
	agent.until(t, "hosts")
	if got := read(t, "/etc/resolv.conf"); strings.Contains(got, dns.Address().String()) || !strings.Contains(got, "192.0.2.55") {
		t.Errorf("with three servers resolv.conf is %q", got)
	}
	checkNames(t, true)
	tell("nameserver " + outsideServer + "\n")
	must(t, agent.cmd.Process.Signal(syscall.SIGHUP))
	agent.until(t, "resolvconf")
	agent.end(t, syscall.SIGKILL)
	must(t, RemoveResolvconf(realTag, ipam.Prefix()))
	if got := read(t, "/etc/resolv.conf"); got != original || guarded(t) {
		t.Errorf("tidied after a kill resolv.conf is %q, was %q; guard %v", got, original, guarded(t))
	}
}

// install lays an unpacked package over the system, in our mount namespace.
func install(t *testing.T, tree string) {
	t.Helper()
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	for path, inside := range map[string][]string{
		"/usr/sbin": {"sbin", "usr/sbin"}, "/usr/lib": {"lib", "usr/lib"}, "/etc": {"etc"},
	} {
		var lower []string
		for _, dir := range inside {
			if _, err := os.Stat(filepath.Join(tree, dir)); err == nil {
				lower = append(lower, filepath.Join(tree, dir))
			}
		}
		upper, work := filepath.Join("/run/over", path, "upper"), filepath.Join("/run/over", path, "work")
		must(t, os.MkdirAll(upper, 0o755))
		must(t, os.MkdirAll(work, 0o755))
		options := "lowerdir=" + strings.Join(append(lower, path), ":") + ",upperdir=" + upper + ",workdir=" + work
		if err := unix.Mount("overlay", path, "overlay", 0, options); err != nil {
			skip(t, "needs overlayfs: %v", err)
		}
	}
	must(t, os.WriteFile("/etc/nsswitch.conf", []byte("passwd: files\nhosts: files dns\n"), 0o644))
	must(t, os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost\n"), 0o644))
	if err := os.Remove("/etc/resolv.conf"); !errors.Is(err, os.ErrNotExist) {
		must(t, err)
	}
	if _, err := os.Stat("/etc/resolvconf.conf"); err == nil {
		return // of openresolv, which makes the file
	}
	must(t, os.MkdirAll("/run/resolvconf/interface", 0o755))
	must(t, os.Symlink("../run/resolvconf/resolv.conf", "/etc/resolv.conf"))
	out, err := exec.Command("/sbin/resolvconf", "--enable-updates").CombinedOutput()
	if err != nil {
		t.Fatalf("enable updates: %v\n%s", err, out)
	}
}

// checkNames asks glibc for a peer, which it is to find if there is an agent, and
// for a name of the other server, which it is to find at once in any case.
func checkNames(t *testing.T, agent bool) {
	t.Helper()
	const peer = "fd50:494c:4f54::a91c:33f0 bob.pilot.internal"
	want := map[string]string{
		"bob.pilot.internal": peer, "fd50:494c:4f54::a91c:33f0": peer, "mallory.pilot.internal": "",
		"outside.example": "2001:db8::1 outside.example", "nobody.example": "",
	}
	if !agent {
		want["bob.pilot.internal"], want["fd50:494c:4f54::a91c:33f0"] = "", ""
	}
	for key, answer := range want {
		begin := time.Now()
		got := getent(t, "hosts", key)
		if took := time.Since(begin); got != answer || took > 4*time.Second { // a question that nobody answers takes 5 s
			t.Errorf("agent %v: %s is %q after %v, want %q at once", agent, key, got, took, answer)
		}
	}
	if list, err := new(net.Resolver).LookupNetIP(t.Context(), "ip6", "outside.example"); err != nil || len(list) != 1 {
		t.Errorf("agent %v: Go finds outside.example at %v, %v", agent, list, err)
	}
}

// guarded reports whether the route for the time after a kill is there.
func guarded(t *testing.T) bool {
	t.Helper()
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
	must(t, err)
	return slices.ContainsFunc(list, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == ipam.Prefix().String() })
}

// startOutside is the name server of the network that the machine is in. The
// function returns the names that it was asked for.
func startOutside(t *testing.T) (asked func() []string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", outsideServer+":53")
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	var mu sync.Mutex
	var names []string
	go func() {
		for b := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			mu.Lock()
			names = append(names, q.Name.String())
			mu.Unlock()
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			switch {
			case q.Name.String() != "outside.example.":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeAAAA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET},
					Body:   &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()},
				}}
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from) // who lost it asks again
			}
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

// A realAgent is a process with a TUN, the resolver behind it and a manager.
type realAgent struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func startRealAgent(t *testing.T) *realAgent {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "PILOT_TEST_AGENT=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // most have ended by then
	return &realAgent{cmd, bufio.NewScanner(out)}
}

// until reads what the agent says until its mode is want.
func (a *realAgent) until(t *testing.T, want string) {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = a.cmd.Process.Kill() }) // which ends the lines
	defer late.Stop()
	for a.lines.Scan() {
		t.Logf("agent: %s", a.lines.Text())
		if a.lines.Text() == "mode "+want {
			return
		}
	}
	t.Fatalf("the agent ended before mode %s: %v", want, a.lines.Err())
}

func (a *realAgent) end(t *testing.T, how syscall.Signal) {
	t.Helper()
	must(t, a.cmd.Process.Signal(how))
	for a.lines.Scan() {
		t.Logf("agent: %s", a.lines.Text())
	}
	if err := a.cmd.Wait(); err != nil && how != syscall.SIGKILL {
		t.Errorf("the agent ended with %v", err)
	}
}

// runRealAgent is that process. It ends at SIGTERM, and looks whether all is in
// order at SIGHUP instead of every minute.
func runRealAgent(t *testing.T) {
	own, peer := ipam.Addr{Node: 0x10002}, ipam.Addr{Node: 0xa91c33f0}
	device, err := tun.Open(tun.Config{Name: "pilot0", Address: netip.PrefixFrom(own.ULA(), 128), Route: ipam.Prefix(), MTU: 1408})
	must(t, err)
	defer device.Close()
	zone := dns.NewZone()
	zone.Set([]dns.Entry{{Name: "bob", Addr: peer}})
	go answerPackets(device, dns.NewResponder(zone))
	m := NewManager(Config{
		Mode: Auto, Device: "pilot0", Server: dns.Address(), Route: ipam.Prefix(), Domain: dns.Domain, Reverse: dns.ReverseDomain,
		Probe: dns.ServerName, HostsFile: "/etc/hosts", Tag: realTag, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	look := make(chan os.Signal, 1)
	signal.Notify(look, syscall.SIGHUP)
	changed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx, changed, func() []Entry { return []Entry{{Addr: peer.ULA(), Names: []string{"bob.pilot.internal"}}} })
	}()
	last := Off
	for tick := time.Tick(5 * time.Millisecond); ; {
		select {
		case <-done:
			return
		case <-look:
			for _, s := range m.means {
				if r, ok := s.(*resolvconf); ok {
					r.check() // the manager waits for changed
				}
			}
			changed <- struct{}{}
		case <-tick:
		}
		if s := m.Status(); s.Mode != last {
			last = s.Mode
			os.Stdout.WriteString("mode " + string(last) + "\n")
		}
	}
}
