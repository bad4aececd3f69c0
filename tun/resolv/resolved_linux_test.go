package resolv

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/net/dns/dnsmessage"
)

const (
	testDomain  = "pilot.internal"
	testReverse = "4.5.f.4.c.4.9.4.0.5.d.f.ip6.arpa"
	testProbe   = "dns.pilot.internal"
)

var testServer = netip.MustParseAddr("fd50:494c:4f54::35")

// startBus runs a message bus of our own until the test ends.
func startBus(t *testing.T, dir string) (address string) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		skip(t, "needs dbus-daemon (apt-get install dbus-daemon): %v", err)
	}
	config := filepath.Join(dir, "bus.conf")
	must(t, os.WriteFile(config, []byte(`<busconfig><type>system</type><listen>unix:dir=`+dir+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`), 0o644))
	cmd := exec.Command(daemon, "--config-file="+config, "--nofork", "--print-address=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed, as it says
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	return strings.TrimSpace(line)
}

// skip skips a test, or fails it where everything has to run.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
		t.Fatalf(format+", and PILOT_REQUIRE_ROOT=1 forbids to skip", args...)
	}
	t.Skipf(format, args...)
}

// A fake is a systemd-resolved that notes what it is told.
type fake struct {
	conn *dbus.Conn
	old  bool          // knows SetLinkDNS, SetLinkDomains and SetLinkDNSSEC only
	slow chan struct{} // non-nil: SetLinkDNS answers when it is closed

	mu    sync.Mutex
	calls []string
}

func startFake(t *testing.T, bus string, f *fake) *fake {
	t.Helper()
	conn, err := dbus.Connect(bus)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	f.conn = conn
	note := func(name string, args ...any) *dbus.Error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls = append(f.calls, strings.TrimSpace(name+" "+fmt.Sprintln(args...)))
		return nil
	}
	methods := map[string]any{
		"SetLinkDNS": func(link int32, l []resolvedServer) *dbus.Error {
			if f.slow != nil {
				<-f.slow
			}
			return note("SetLinkDNS", link, l)
		},
		"SetLinkDomains": func(link int32, l []resolvedDomain) *dbus.Error { return note("SetLinkDomains", link, l) },
		"SetLinkDNSSEC":  func(link int32, s string) *dbus.Error { return note("SetLinkDNSSEC", link, s) },
		"RevertLink":     func(link int32) *dbus.Error { return note("RevertLink", link) },
		"FlushCaches":    func() *dbus.Error { return note("FlushCaches") },
	}
	if !f.old {
		methods["SetLinkDefaultRoute"] = func(link int32, b bool) *dbus.Error { return note("SetLinkDefaultRoute", link, b) }
		for _, name := range []string{"SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSOverTLS"} {
			methods[name] = func(link int32, s string) *dbus.Error { return note(name, link, s) }
		}
	}
	must(t, conn.ExportMethodTable(methods, resolvedPath, strings.TrimSuffix(resolvedCalls, ".")))
	f.own(t)
	return f
}

func (f *fake) own(t *testing.T) {
	t.Helper()
	if got, err := f.conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil || got != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("request the name: %v, %v", got, err)
	}
}

// take returns the calls so far and forgets them.
func (f *fake) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.calls = nil }()
	return f.calls
}

// startStub answers every question with the resolver's address.
func startStub(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		for b := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || m.Questions[0].Name.String() != testProbe+"." {
				continue
			}
			m.Response = true
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
				Body:   &dnsmessage.AAAAResource{AAAA: testServer.As16()},
			}}
			reply, err := m.Pack()
			if err != nil {
				return
			}
			if _, err := conn.WriteTo(reply, from); err != nil {
				return
			}
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// testPaths is a system whose programs ask systemd-resolved.
func testPaths(t *testing.T) paths {
	t.Helper()
	dir := t.TempDir()
	p := paths{
		resolvConf: filepath.Join(dir, "resolv.conf"), nsswitch: filepath.Join(dir, "nsswitch.conf"),
		sockets: filepath.Join(dir, "udp"), sbin: []string{dir}, state: filepath.Join(dir, "state"), first: "/proc/self",
	}
	must(t, os.WriteFile(p.resolvConf, []byte("# a stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"), 0o644))
	must(t, os.WriteFile(p.nsswitch, []byte("passwd: files\nhosts:  files dns # and no more\n"), 0o644))
	must(t, os.WriteFile(p.sockets, fmt.Appendf(nil, `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  110: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     9        0 10 2 0 0
  111: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000  %d        0 11 2 0 0
`, os.Getuid()), 0o644))
	return p
}

// A rig is a manager that runs, with a fake to talk to.
type rig struct {
	*Manager
	means   *resolved
	hosts   string
	changed chan struct{}
	stop    func()
}

func start(t *testing.T, bus string, change func(*resolved)) *rig {
	t.Helper()
	r := newResolved(Config{
		Device: "lo", Server: testServer, Domain: testDomain, Reverse: testReverse, Probe: testProbe,
	})
	r.bus, r.paths, r.stub = bus, testPaths(t), startStub(t)
	if change != nil {
		change(r)
	}
	g := &rig{means: r, hosts: hostsFile(t, "127.0.0.1 localhost\n"), changed: make(chan struct{}, 1)}
	g.Manager = newManager(slog.New(slog.DiscardHandler), r, &hostsMeans{NewHosts(g.hosts, "a")})
	g.run(t)
	return g
}

// run runs the manager until stop, or the end of the test.
func (g *rig) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Run(ctx, g.changed, func() []Entry { return bob })
	}()
	g.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(g.stop)
}

// until waits for a mode, and returns the status.
func (g *rig) until(t *testing.T, want Mode) Status {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for tick := time.Tick(5 * time.Millisecond); ; {
		if s := g.Status(); s.Mode == want {
			return s
		}
		select {
		case <-deadline:
			t.Fatalf("status stays %+v, want %v", g.Status(), want)
		case <-tick:
		}
	}
}

func (g *rig) inFile(t *testing.T) bool {
	t.Helper()
	return strings.Contains(read(t, g.hosts), "bob.pilot.internal")
}

// settings are what the fake is to be told.
func settings(search bool, old bool) []string {
	link, err := net.InterfaceByName("lo")
	if err != nil {
		panic(err)
	}
	address := testServer.As16()
	list := []string{
		strings.TrimSpace(fmt.Sprintln("SetLinkDNS", link.Index, []resolvedServer{{10, address[:]}})),
		fmt.Sprintf("SetLinkDomains %d [{pilot.internal %v} {%s true}]", link.Index, !search, testReverse),
		fmt.Sprintf("SetLinkDNSSEC %d no", link.Index),
	}
	if !old {
		list = append(list, fmt.Sprintf("SetLinkDefaultRoute %d false", link.Index), fmt.Sprintf("SetLinkLLMNR %d no", link.Index),
			fmt.Sprintf("SetLinkMulticastDNS %d no", link.Index), fmt.Sprintf("SetLinkDNSOverTLS %d no", link.Index))
	}
	return append(list, "FlushCaches")
}

func TestResolved(t *testing.T) {
	t.Parallel()
	bus := startBus(t, t.TempDir())
	f := startFake(t, bus, new(fake))
	g := start(t, bus, nil)
	if s := g.until(t, Resolved); len(s.Notes) > 0 || g.inFile(t) {
		t.Errorf("status %+v, hosts file %q", s, read(t, g.hosts))
	}
	if got := f.take(); !slices.Equal(got, settings(false, false)) {
		t.Errorf("calls %q, want %q", got, settings(false, false))
	}

	// It ends: the names move to the hosts file, and back when it returns.
	if _, err := f.conn.ReleaseName(resolvedName); err != nil {
		t.Fatal(err)
	}
	if s := g.until(t, HostFile); len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "does not run") || !g.inFile(t) {
		t.Errorf("status %+v, hosts file %q", s, read(t, g.hosts))
	}
	f.own(t)
	g.until(t, Resolved)
	if got := f.take(); !slices.Equal(got, settings(false, false)) || g.inFile(t) {
		t.Errorf("calls after its return %q, hosts file %q", got, read(t, g.hosts))
	}

	g.stop()
	link, err := net.InterfaceByName("lo")
	must(t, err)
	if got, want := f.take(), []string{fmt.Sprint("RevertLink ", link.Index), "FlushCaches"}; !slices.Equal(got, want) {
		t.Errorf("calls at the end %q, want %q", got, want)
	}
	if got := read(t, g.hosts); got != "127.0.0.1 localhost\n" || g.Status().Mode != Off {
		t.Errorf("hosts file %q, status %+v", got, g.Status())
	}
}

// TestResolvedEndsBusy: an end that comes while the service is looked at again
// takes everything back all the same.
func TestResolvedEndsBusy(t *testing.T) {
	t.Parallel()
	bus := startBus(t, t.TempDir())
	f := startFake(t, bus, new(fake))
	r := newResolved(Config{
		Device: "lo", Server: testServer, Domain: testDomain, Reverse: testReverse, Probe: testProbe,
	})
	r.bus, r.paths, r.stub = bus, testPaths(t), startStub(t)
	defer r.close()
	must(t, r.set(t.Context(), nil))
	f.take()
	r.check()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.set(ended, nil); err == nil {
		t.Error("set after the end")
	}
	if err := r.undo(ended); err == nil {
		t.Error("undo without a way to do it")
	}
	must(t, r.undo(t.Context()))
	if got := f.take(); len(got) < 2 || !strings.HasPrefix(got[len(got)-2], "RevertLink ") || got[len(got)-1] != "FlushCaches" {
		t.Errorf("calls at the end %q", got)
	}
	must(t, r.undo(t.Context()))
	if got := f.take(); len(got) != 0 {
		t.Errorf("calls after the end %q", got)
	}
}

// TestResolvedRestart: a new owner of the name knows nothing and is told again.
func TestResolvedRestart(t *testing.T) {
	t.Parallel()
	bus := startBus(t, t.TempDir())
	first := startFake(t, bus, new(fake))
	g := start(t, bus, func(r *resolved) { r.Search = true })
	g.until(t, Resolved)
	if got := first.take(); !slices.Equal(got, settings(true, false)) {
		t.Errorf("calls %q", got)
	}
	first.conn.Close()
	second := startFake(t, bus, &fake{old: true})
	want := settings(true, true)
	deadline := time.Now().Add(20 * time.Second)
	var got []string
	for tick := time.Tick(5 * time.Millisecond); len(got) < len(want) && time.Now().Before(deadline); <-tick {
		got = append(got, second.take()...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the new one is told %q, want %q", got, want)
	}
	g.until(t, Resolved)
}

// TestResolvedNot has what keeps systemd-resolved from being used.
func TestResolvedNot(t *testing.T) {
	t.Parallel()
	bus := startBus(t, t.TempDir())
	startFake(t, bus, new(fake))
	file := func(path *string, text string) func(*testing.T) {
		return func(t *testing.T) { must(t, os.WriteFile(*path, []byte(text), 0o644)) }
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, r *resolved)
		note   string
	}{
		"no bus":         {func(_ *testing.T, r *resolved) { r.bus = "unix:path=/nonexistent" }, "D-Bus: "},
		"no device":      {func(_ *testing.T, r *resolved) { r.Device = "none" }, "no such network interface"},
		"another server": {func(t *testing.T, r *resolved) { file(&r.paths.resolvConf, "nameserver 192.0.2.1\n")(t) }, "names 192.0.2.1, not 127.0.0.53"},
		"two servers": {func(t *testing.T, r *resolved) {
			file(&r.paths.resolvConf, "nameserver 127.0.0.53\nnameserver 192.0.2.1\n")(t)
		}, "programs do not ask it"},
		"no server":      {func(t *testing.T, r *resolved) { file(&r.paths.resolvConf, "")(t) }, "names no server"},
		"no resolv.conf": {func(t *testing.T, r *resolved) { must(t, os.Remove(r.paths.resolvConf)) }, "no such file"},
		"files only":     {func(t *testing.T, r *resolved) { file(&r.paths.nsswitch, "hosts: files\n")(t) }, `by "files" only`},
		"nobody listens": {func(t *testing.T, r *resolved) { file(&r.paths.sockets, "header\n")(t) }, "nobody answers on 127.0.0.53"},
		"a stranger": {func(t *testing.T, r *resolved) {
			file(&r.paths.sockets, "1: 3500007F:0035 0:0 07 0:0 0:0 0 4242 0\n")(t)
		}, "it is another one"},
		"no way through it": {func(_ *testing.T, r *resolved) {
			r.Probe = "nobody.pilot.internal"
			r.stub = netip.MustParseAddrPort("127.0.0.1:9")
		}, "names do not come through"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, bus, func(r *resolved) { c.change(t, r) })
			s := g.until(t, HostFile)
			if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], c.note) || !g.inFile(t) {
				t.Errorf("notes %q, want %q; hosts file %q", s.Notes, c.note, read(t, g.hosts))
			}
		})
	}
}

// TestResolvedHangs: a call that is not answered costs a second, not the start.
func TestResolvedHangs(t *testing.T) {
	t.Parallel()
	bus := startBus(t, t.TempDir())
	slow := make(chan struct{})
	defer close(slow)
	startFake(t, bus, &fake{slow: slow})
	begin := time.Now()
	g := start(t, bus, nil)
	if s := g.until(t, HostFile); !strings.Contains(s.Notes[0], "SetLinkDNS") || time.Since(begin) > 8*time.Second {
		t.Errorf("notes %q after %v", s.Notes, time.Since(begin))
	}
}

func TestHostsLine(t *testing.T) {
	t.Parallel()
	p := testPaths(t)
	if got, ok := p.hostsLine(); !ok || !reflect.DeepEqual(got, []string{"files", "dns"}) {
		t.Errorf("got %q, %v", got, ok)
	}
}
