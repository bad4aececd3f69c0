package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// A plan is what two agents and their servers have on disk once they trust each
// other: made once, since trust takes seconds, and copied for every run. The two
// have only ever seen each other through a relay over TLS, so that neither
// remembers an endpoint of the other.
type plan struct {
	dir     string // with alice, bob, server and server2
	servers []string
	ula     map[string]string // of alice and bob
	listen  [][]string        // arguments of the servers
}

// plans makes each plan when it is first asked for; they last as long as t.
type plans struct {
	t    *testing.T
	mu   sync.Mutex
	made map[int]*plan
}

// serverHosts are where the first and the second server run.
var serverHosts = []string{"rdv", "rdv2"}

func (p *plans) get(servers int) *plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made[servers] == nil {
		made := newPlan(p.t, servers)
		if p.made == nil {
			p.made = map[int]*plan{}
		}
		p.made[servers] = made
	}
	return p.made[servers]
}

// newPlan makes trust between alice and bob, who have that many servers.
func newPlan(t *testing.T, servers int) *plan {
	t.Helper()
	dir, err := os.MkdirTemp("", "pilot")
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{dir: dir, ula: map[string]string{}}
	t.Run("trust", func(t *testing.T) {
		l := newLab(t, "udpblock", "udpblock")
		alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
		addresses := [][]string{{"192.0.2.10", "192.0.2.11"}, {"192.0.2.138"}}
		for i, host := range serverHosts[:servers] {
			state := filepath.Join(l.dir, "server"+itoa(i))
			key := strings.TrimSpace(l.output(t, host, "pilotctl", "server", "key", "--state-dir", state))
			p.servers = append(p.servers, addresses[i][0]+"#"+key)
			var args []string
			for _, a := range addresses[i] {
				args = append(args, "--listen", a+":3478", "--listen", a+":443")
			}
			p.listen = append(p.listen, args)
		}
		runs := l.startServers(t, p, l.dir)
		for _, a := range []*agent{alice, bob} {
			args := []string{"up", "--name", a.name}
			for _, s := range p.servers {
				args = append(args, "--server", s)
			}
			a.pilot(t, args...)
			p.ula[a.name] = a.id(t).ULA
		}
		trust(t, alice, bob, "7000-7003", "--offer", "7000-7003")
		alice.pilot(t, "ping", "bob")
		for _, a := range []*agent{alice, bob} {
			a.pilot(t, "down")
			within(t, 5*time.Second, a.name+" is down", func() bool { return a.daemon() == 0 })
		}
		for i, s := range runs {
			_ = s.Process.Kill()
			_ = s.Wait()
			copyState(t, filepath.Join(l.dir, "server"+itoa(i)), filepath.Join(dir, "server"+itoa(i)))
		}
		copyState(t, alice.state, filepath.Join(dir, "alice"))
		copyState(t, bob.state, filepath.Join(dir, "bob"))
	})
	t.Cleanup(func() { os.RemoveAll(dir) })
	if t.Failed() {
		t.FailNow()
	}
	return p
}

// startServers starts the servers of a plan with the state below a directory.
func (l *lab) startServers(t *testing.T, p *plan, dir string) []*exec.Cmd {
	t.Helper()
	var list []*exec.Cmd
	for i := range p.servers {
		args := append([]string{"pilotctl", "server", "run", "--state-dir", filepath.Join(dir, "server"+itoa(i))}, p.listen[i]...)
		c := l.on(t.Context(), serverHosts[i], args...)
		l.ready(t, c)
		list = append(list, c)
	}
	return list
}

func copyState(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// slowStart is a start that deserves a look at the logs.
const slowStart = 4 * time.Second

// fullRate is that of the measurements: packets a second of a stream.
const fullRate = 1000

// A meeting is two agents in a lab that can meet again and again as if for the
// first time.
type meeting struct {
	*lab
	plan    *plan
	rate    int // packets a second of the streams
	kinds   []string
	servers []*exec.Cmd
	agents  [2]*agent
	daemons [2]*exec.Cmd
}

// meeting builds a lab for alice and bob, who trust each other, at two hosts.
func newMeeting(t *testing.T, p *plan, hosts [2]string, kinds []string, env ...string) *meeting {
	t.Helper()
	m := &meeting{lab: newLabWith(t, env, kinds...), plan: p, kinds: kinds, rate: fullRate}
	for i, name := range []string{"alice", "bob"} {
		m.agents[i] = &agent{lab: m.lab, host: hosts[i], name: name, state: filepath.Join(m.dir, name)}
	}
	for i := range p.servers {
		copyState(t, filepath.Join(p.dir, "server"+itoa(i)), filepath.Join(m.dir, "server"+itoa(i)))
	}
	m.hastenWires()
	m.servers = m.startServers(t, p, m.dir)
	return m
}

// hastenWires puts the programs that delay packets before all others: a link
// does not wait for a processor. Where that is forbidden they stay as they are.
func (m *meeting) hastenWires() {
	files, _ := filepath.Glob(filepath.Join("/run/natlab", m.prefix, "pid.wire.*"))
	for _, name := range files {
		b, _ := os.ReadFile(name)
		if text, _, ok := strings.Cut(string(b), " "); ok {
			pid, _ := strconv.Atoi(text)
			_ = unix.Setpriority(unix.PRIO_PROCESS, pid, -20)
		}
	}
}

// again starts both agents afresh: the old ones are killed, what they wrote is
// replaced by what the plan has, and the NATs forget everything. It returns when
// both are registered, with the time that each took.
func (m *meeting) again(t *testing.T) (took [2]time.Duration) {
	t.Helper()
	for i, d := range m.daemons {
		if d != nil {
			_ = d.Process.Kill()
			_ = d.Wait()
			m.daemons[i] = nil
		}
	}
	for i := range m.kinds {
		m.do(t, "flush", string(rune('a'+i)))
	}
	for _, a := range m.agents {
		if err := os.RemoveAll(a.state); err != nil {
			t.Fatal(err)
		}
		copyState(t, filepath.Join(m.plan.dir, a.name), a.state)
	}
	begin := time.Now()
	for i := range m.agents {
		m.start(t, i)
	}
	waiting := [2]bool{true, true}
	if !poll5(t.Context(), 20*time.Second, func() bool {
		for i, a := range m.agents {
			if waiting[i] && a.registered(t.Context(), len(m.plan.servers)) {
				waiting[i], took[i] = false, time.Since(begin)
			}
		}
		return !waiting[0] && !waiting[1]
	}) {
		m.showLogs(t)
		t.Fatalf("not registered after 20 s: alice %v, bob %v", waiting[0], waiting[1])
	}
	if max(took[0], took[1]) > slowStart {
		t.Logf("slow to register: %v", took)
		m.showLogs(t)
	}
	return took
}

// start runs an agent's daemon.
func (m *meeting) start(t *testing.T, i int) {
	t.Helper()
	a := m.agents[i]
	log, err := os.OpenFile(filepath.Join(a.state, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := exec.CommandContext(t.Context(), lookup("ip"), "netns", "exec", m.namespace(a.host), pilotctl, "daemon", "run", "--dns", "off")
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "PILOT_STATE_DIR=" + a.state, "HOME=" + m.dir}
	if site := a.host[0]; strings.HasPrefix(m.kinds[site-'a'], "proxy") {
		c.Env = append(c.Env, "HTTPS_PROXY=http://10."+itoa(int(site-'a')+1)+".0.1:3128")
	}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m.daemons[i] = c
}

// client speaks to the daemon without a process of its own. There is one for all
// calls: each keeps connections open, and a daemon takes only so many.
func (a *agent) client() *api.Client {
	a.once.Do(func() { a.api = api.NewClient(filepath.Join(a.state, "pilot.sock")) })
	return a.api
}

// registered says whether that many servers know the agent.
func (a *agent) registered(ctx context.Context, servers int) bool {
	s, err := a.client().Status(ctx)
	n := 0
	for _, server := range s.Servers {
		if server.State == "registered" && server.Claimed {
			n++
		}
	}
	return err == nil && n == servers
}

// other is what the daemon says of the other agent.
func (a *agent) other(ctx context.Context) overlay.Peer {
	if list, err := a.client().Peers(ctx); err == nil && len(list) == 1 {
		return list[0]
	}
	return overlay.Peer{}
}

// poll5 is poll for what is measured.
func poll5(ctx context.Context, wait time.Duration, ok func() bool) bool {
	late := time.NewTimer(wait)
	defer late.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-late.C:
			return ok()
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// pass lets time go by.
func pass(t *testing.T, d time.Duration) {
	poll(t.Context(), d, func() bool { return false })
}

// lossPlaces says where packets got lost that did so on a host.
func (m *meeting) lossPlaces(t *testing.T) string {
	t.Helper()
	var texts []string
	for _, host := range []string{m.agents[0].host, m.agents[1].host, "rdv"} {
		out := m.output(t, host, "sh", "-c", `awk '$1 == "Udp:" && $6 ~ /^[0-9]/ && $6 > 0 { print "receive buffer", $6 }
			$1 == "Udp:" && $7 ~ /^[0-9]/ && $7 > 0 { print "send buffer", $7 }' /proc/net/snmp
			ip -s -s link 2>/dev/null | awk '/^[0-9]/ { dev = $2 } /RX:|TX:/ { way = $1; getline; if ($4 > 0) print dev, way, "dropped", $4 }'`)
		if text := strings.Join(strings.Fields(out), " "); text != "" {
			texts = append(texts, host+": "+text)
		}
	}
	for _, a := range m.agents {
		if s, err := a.client().Status(t.Context()); err == nil && len(s.Drops) > 0 {
			texts = append(texts, fmt.Sprintf("%s: %v", a.name, s.Drops))
		}
	}
	return strings.Join(texts, "; ")
}
