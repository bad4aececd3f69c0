package portmap_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt/portmap"
)

const (
	script   = "../../../shared/lab/natlab.sh" // kept beside this repository
	patience = 20 * time.Second
	inside   = "PILOT_PORTMAP_INSIDE" // set where this program runs in a namespace
)

// lookup finds a program also where only root's PATH leads.
func lookup(tool string) string {
	for _, name := range []string{tool, "/usr/sbin/" + tool} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// need skips a test that cannot have namespaces, or fails it where everything has to run.
func need(t *testing.T, tools ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, tool := range tools {
		if lookup(tool) == "" {
			why = "needs " + tool
		}
	}
	if why == "" {
		if out, err := exec.Command(lookup("unshare"), "-n", "true").CombinedOutput(); err != nil {
			why = fmt.Sprintf("needs namespaces: %v: %s", err, out)
		}
	}
	switch {
	case why == "":
	case os.Getenv("PILOT_REQUIRE_ROOT") == "1":
		t.Fatalf("%s, and PILOT_REQUIRE_ROOT=1 forbids to skip", why)
	default:
		t.Skip(why)
	}
}

// TestInside is no test: it is the agent in the namespace. It prints mappings as they come and what reaches its socket,
// and obeys the lines of its standard input: "kick"; the end of it is the end.
func TestInside(t *testing.T) {
	if os.Getenv(inside) == "" {
		t.Skip("runs as a part of other tests")
	}
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
	m, err := portmap.New(portmap.Config{
		Port: func() uint16 { return port },
		OnChange: func(m portmap.Mapping) {
			name := m.Protocol.String()
			if m.IPv6 {
				name += "/IPv6"
			}
			fmt.Printf("mapping %s %v %s\n", name, m.External, m.Problem)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 100)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			fmt.Printf("heard %s\n", b[:n])
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			m.Kick()
		}
	}()
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
	fmt.Println("done")
}

// agent is TestInside in a namespace.
type agent struct {
	t     *testing.T
	in    io.WriteCloser
	lines chan string
	seen  []string
	began time.Time
}

// launch starts the agent by a command line that ends in a program to be run.
func launch(t *testing.T, in ...string) *agent {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(in[0], append(slices.Clone(in[1:]), self, "-test.run=^TestInside$")...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, in: stdin, lines: make(chan string, 1000), began: time.Now()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(a.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			a.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		for range a.lines {
			continue
		}
		_ = cmd.Wait()
	})
	return a
}

// expect waits for a line that begins so, and returns the rest of it.
func (a *agent) expect(prefix string) string {
	a.t.Helper()
	rest, ok := a.await(prefix, patience)
	if !ok {
		a.t.Fatalf("no %q within %v; the agent said %q", prefix, patience, a.seen)
	}
	return rest
}

func (a *agent) await(prefix string, patience time.Duration) (rest string, ok bool) {
	a.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-a.lines:
			if !ok {
				a.t.Fatalf("the agent ended before %q; it said %q", prefix, a.seen)
			}
			a.t.Logf("%6d ms: %s", time.Since(a.began).Milliseconds(), line)
			a.seen = append(a.seen, line)
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest, true
			}
		case <-deadline:
			return "", false
		}
	}
}

// expectAll waits for lines in any order.
func (a *agent) expectAll(prefixes ...string) map[string]string {
	a.t.Helper()
	got := map[string]string{}
	for len(got) < len(prefixes) {
		line := a.expect("")
		for _, p := range prefixes {
			if rest, ok := strings.CutPrefix(line, p); ok && got[p] == "" {
				got[p] = strings.TrimSpace(rest)
			}
		}
	}
	return got
}

// leave ends the agent and checks that this is quick.
func (a *agent) leave() {
	a.t.Helper()
	start := time.Now()
	a.in.Close()
	a.expect("done")
	if d := time.Since(start); d > 3*time.Second {
		a.t.Errorf("withdrawing took %v", d)
	}
}

// call sends a packet to an address by a command line that ends in a program to be run, until the agent hears it.
func (a *agent) call(to, text string, from ...string) {
	a.t.Helper()
	ap, err := netip.ParseAddrPort(to)
	if err != nil {
		a.t.Fatal(err)
	}
	for range 20 {
		run(a.t, append(slices.Clone(from), "bash", "-c", fmt.Sprintf("echo -n %s > /dev/udp/%v/%d", text, ap.Addr(), ap.Port()))...)
		if _, ok := a.await("heard "+text, time.Second); ok {
			return
		}
	}
	a.t.Fatalf("%v is not reached", ap)
}

func run(t *testing.T, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
	return string(out)
}

// The lab's gateway speaks PCP and NAT-PMP, and stands before a symmetric NAT.
func TestLab(t *testing.T) {
	if _, err := os.Stat(script); err != nil {
		t.Skipf("the lab is not beside the repository: %v", err)
	}
	need(t, "ip", "nft", "conntrack", "unshare", "python3", "bash")
	t.Parallel()
	lab := func(words ...string) []string { return append([]string{"env", "NATLAB_PREFIX=pmap", script}, words...) }
	opened := lab("exec", "a-nat", "nft", "list", "map", "ip", "natlab", "opened")
	t.Cleanup(func() { run(t, lab("down")...) })
	run(t, lab("up", "sym+pmp")...)
	wan := strings.TrimSpace(run(t, lab("addr", "a1", "wan")...))
	if wan, _, _ = strings.Cut(wan, "/"); !netip.MustParseAddr(wan).IsValid() {
		t.Fatalf("the site's address is %q", wan)
	}
	pcp, pmp := "mapping PCP "+wan, "mapping NAT-PMP "+wan

	a := launch(t, lab("exec", "a1")...)
	port := a.expectAll(pcp, pmp)
	if took := time.Since(a.began); took > 5*time.Second {
		t.Errorf("mapped after %v", took)
	}
	a.call(wan+port[pcp], "one", lab("exec", "rdv")...)
	a.call(wan+port[pmp], "two", lab("exec", "rdv")...)

	run(t, lab("flush", "a")...) // the mapping is gone
	fmt.Fprintln(a.in, "kick")
	eventually(t, func() bool {
		return strings.Contains(run(t, opened...), "elements")
	})
	a.call(wan+port[pcp], "three", lab("exec", "rdv")...)

	a.leave()
	if left := run(t, opened...); strings.Contains(left, "elements") {
		t.Errorf("left behind: %s", left)
	}
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal("in vain")
		}
	}
}

// network makes a home, a router and an Internet, whose names begin with $P. The addresses are no documentation
// addresses since miniupnpd maps none of those.
const network = `
set -e
in=${P}in gw=${P}gw out=${P}out
for n in $in $gw $out; do ip netns add $n; ip -n $n link set lo up; done
ip link add eth0 netns $in type veth peer name lan netns $gw
ip link add eth0 netns $out type veth peer name wan netns $gw
ip -n $in addr add 192.168.77.2/24 dev eth0
ip -n $in addr add 2001:db8:77::2/64 dev eth0 nodad
ip -n $gw addr add 192.168.77.1/24 dev lan
ip -n $gw addr add 2001:db8:77::1/64 dev lan nodad
ip -n $gw addr add fe80::77/64 dev lan nodad
ip -n $gw addr add 45.1.1.1/24 dev wan
ip -n $gw addr add 2001:db8:1::1/64 dev wan nodad
ip -n $out addr add 45.1.1.2/24 dev eth0
ip -n $out addr add 2001:db8:1::2/64 dev eth0 nodad
for n in $in $out; do ip -n $n link set eth0 up; done
for l in lan wan; do ip -n $gw link set $l up; done
ip -n $in route add default via 192.168.77.1
ip -n $in -6 route add default via fe80::77 dev eth0
ip -n $out -6 route add default via 2001:db8:1::1
ip netns exec $gw sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip netns exec $gw nft -f - <<'NFT'
table inet filter {
	chain miniupnpd { }
	chain prerouting_miniupnpd { }
	chain postrouting_miniupnpd { }
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan" accept
		jump miniupnpd
	}
	chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
	chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; meta nfproto ipv4 oifname "wan" masquerade random; }
}
NFT
`

// site is a home behind a router that runs miniupnpd, as many do.
type site struct {
	t       *testing.T
	home    []string // the beginning of a command that runs there
	router  []string
	outside []string
	restart func() // kills the daemon, forgets all mappings, and starts it again
}

// newSite makes a site. The prefix is that of its namespaces.
func newSite(t *testing.T, prefix, config string) *site {
	t.Helper()
	in := func(n string) []string { return []string{lookup("ip"), "netns", "exec", prefix + n} }
	s := &site{t: t, home: in("in"), router: in("gw"), outside: in("out")}
	down := func() {
		for _, n := range []string{"in", "gw", "out"} {
			_ = exec.Command(lookup("ip"), "netns", "del", prefix+n).Run()
		}
	}
	down()
	t.Cleanup(down)
	run(t, "env", "P="+prefix, "bash", "-c", network)
	file := filepath.Join(t.TempDir(), "miniupnpd.conf")
	text := "ext_ifname=wan\nlistening_ip=lan\nsecure_mode=yes\nsystem_uptime=no\n" +
		"uuid=ca4bd399-bd3b-4595-8ced-e2dcd94261c2\nallow 1024-65535 192.168.77.0/24 1024-65535\n" + config
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	start := func() *exec.Cmd {
		line := append(slices.Clone(s.router), lookup("miniupnpd"), "-d", "-f", file, "-P", file+".pid")
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	cmd := start()
	kill := func() {
		_ = cmd.Process.Kill() // ip becomes what it starts
		_ = cmd.Wait()
	}
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			t.Logf("miniupnpd: %s", log.String())
		}
	})
	s.restart = func() {
		kill()
		for _, chain := range []string{"miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"} {
			run(t, append(slices.Clone(s.router), "nft", "flush", "chain", "inet", "filter", chain)...)
		}
		_ = os.Remove(file + ".pid")
		cmd = start()
	}
	return s
}

// rules returns the router's rules, in which its mappings stand.
func (s *site) rules() string {
	s.t.Helper()
	return run(s.t, append(slices.Clone(s.router), "nft", "list", "table", "inet", "filter")...)
}

func TestMiniUPnPd(t *testing.T) {
	need(t, "ip", "nft", "unshare", "sysctl", "bash", "miniupnpd")
	t.Parallel()
	for name, c := range map[string]struct {
		prefix string
		config string
		want   []string
	}{
		"UPnP":     {"pmapa", "enable_upnp=yes\nenable_natpmp=no\n", []string{"mapping UPnP 45.1.1.1", "mapping UPnP/IPv6 [2001:db8:77::2]"}},
		"IGD 1":    {"pmapb", "enable_upnp=yes\nenable_natpmp=no\nforce_igd_desc_v1=yes\n", []string{"mapping UPnP 45.1.1.1"}},
		"PCP":      {"pmapc", "enable_upnp=no\nenable_natpmp=yes\n", []string{"mapping PCP 45.1.1.1", "mapping NAT-PMP 45.1.1.1", "mapping PCP/IPv6 [2001:db8:77::2]"}},
		"together": {"pmapd", "enable_upnp=yes\nenable_natpmp=yes\n", []string{"mapping UPnP 45.1.1.1", "mapping NAT-PMP 45.1.1.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, c.prefix, c.config)
			a := launch(t, s.home...)
			got := a.expectAll(c.want...)
			for i, w := range c.want {
				_, addr, _ := strings.Cut(strings.TrimPrefix(w, "mapping "), " ")
				a.call(addr+got[w], fmt.Sprintf("call-%d", i), s.outside...)
			}
			a.leave()
			if left := s.rules(); strings.Contains(left, "dnat") || strings.Contains(left, "daddr") {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// A router that restarts says so, and all protocols map again without being told.
func TestRestartOfMiniUPnPd(t *testing.T) {
	need(t, "ip", "nft", "unshare", "sysctl", "bash", "miniupnpd")
	t.Parallel()
	s := newSite(t, "pmape", "enable_upnp=yes\nenable_natpmp=yes\n")
	a := launch(t, s.home...)
	want := "mapping PCP 45.1.1.1"
	port := a.expectAll(want, "mapping NAT-PMP 45.1.1.1", "mapping UPnP 45.1.1.1")[want]
	a.call("45.1.1.1"+port, "before", s.outside...)

	<-time.After(4 * time.Second) // the epoch counts seconds, and one may be lost
	s.restart()
	start := time.Now()
	eventually(t, func() bool { return strings.Contains(s.rules(), "dnat") })
	t.Logf("mapped again after %v", time.Since(start))
	a.call("45.1.1.1"+port, "after", s.outside...)
	a.leave()
}
