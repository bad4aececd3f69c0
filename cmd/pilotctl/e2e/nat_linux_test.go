package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// natPairs are the kinds of NATs that TestNATs puts before the two sides, and
// whether they can meet directly.
var natPairs = []struct {
	a, b   string
	direct bool
}{
	{"none", "sym", true}, {"port", "linux", true}, {"docker", "docker", true},
	{"linux", "sym", true}, {"port", "sym", true}, {"fw", "sym", true}, {"docker", "sym", true}, {"cgnat", "sym", true},
	{"linux", "sym-addr", true}, {"docker", "sym-addr", true}, {"linux", "sym-seq", true}, {"port", "sym-seq", true},
	{"linux", "cgnat-sym", true}, {"sym", "sym", false},
}

// natWait is how long a pair may take until it is direct.
const natWait = 10 * time.Second

// TestNATs measures pairs of NATs and appends to natt/natlab/RESULTS.md. It runs
// with PILOT_NAT=1 only (make nat). PILOT_NAT_RUNS says how often (3) each pair
// is measured, PILOT_NAT_PAIRS which ("linux-sym,sym-sym"). Pairs with as many
// lines of this day in the file are left out, so an interrupted run goes on
// where it ended.
func TestNATs(t *testing.T) {
	if os.Getenv("PILOT_NAT") != "1" {
		t.Skip("measures for minutes; PILOT_NAT=1 runs it")
	}
	needLab(t)
	runs := 3
	if s := os.Getenv("PILOT_NAT_RUNS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("PILOT_NAT_RUNS: %v", err)
		}
		runs = n
	}
	wanted := map[string]bool{}
	for _, p := range strings.Split(os.Getenv("PILOT_NAT_PAIRS"), ",") {
		wanted[p] = p != ""
	}
	results := natResults{path: filepath.Join(root, "natt", "natlab", "RESULTS.md"), day: time.Now().UTC().Format(time.DateOnly)}
	for _, p := range natPairs {
		name := p.a + "-" + p.b
		if os.Getenv("PILOT_NAT_PAIRS") != "" && !wanted[name] {
			continue
		}
		for run := results.count(t, name) + 1; run <= runs; run++ {
			t.Run(fmt.Sprintf("%s/%d", name, run), func(t *testing.T) {
				first, direct := measureNAT(t, p.a, p.b)
				results.add(t, name, run, first, direct)
				if (direct != 0) != p.direct {
					t.Errorf("direct after %v, want direct %v", direct, p.direct)
				}
			})
		}
	}
}

// measureNAT returns how long after the start of pings, 50 a second, the first
// answer came, and the first that came directly; 0: none in natWait.
func measureNAT(t *testing.T, a, b string) (first, direct time.Duration) {
	l := newLab(t, a, b)
	s := l.serverAt(t, "192.0.2.10:3478", "192.0.2.10:443", "192.0.2.11:3478", "192.0.2.11:443")
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "7")
	ctx, cancel := context.WithTimeout(t.Context(), natWait+time.Second)
	defer cancel()
	c := alice.command(ctx, "pilotctl", "ping", "bob", "--until-direct", "-i", "20ms", "-c", "500")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if first == 0 && strings.Contains(lines.Text(), "path=") {
			first = time.Since(begin)
		}
		if direct == 0 && strings.Contains(lines.Text(), "path=direct") {
			direct = time.Since(begin)
		}
	}
	_ = c.Wait() // its status says no more than direct
	if first == 0 {
		t.Errorf("no answer at all")
	}
	if direct == 0 {
		t.Logf("why not direct: %s", alice.peer(t, "bob").WhyNot)
	}
	return first, direct
}

// serverAt starts a server that listens there.
func (l *lab) serverAt(t *testing.T, listen ...string) *server {
	t.Helper()
	s := &server{lab: l, state: filepath.Join(l.dir, "server")}
	key := strings.TrimSpace(l.output(t, "rdv", "pilotctl", "server", "key", "--state-dir", s.state))
	s.name = "192.0.2.10#" + key
	args := []string{"pilotctl", "server", "run", "--state-dir", s.state}
	for _, a := range listen {
		args = append(args, "--listen", a)
	}
	s.cmd = l.on(t.Context(), "rdv", args...)
	l.ready(t, s.cmd)
	return s
}

// natResults is the file of results.
type natResults struct{ path, day string }

func (r natResults) read(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(r.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// count is how many results of this day a pair has.
func (r natResults) count(t *testing.T, pair string) (n int) {
	t.Helper()
	for line := range strings.Lines(r.read(t)) {
		if strings.HasPrefix(line, "| "+r.day+" ") && strings.Contains(line, " | "+pair+" | ") {
			n++
		}
	}
	return n
}

func (r natResults) add(t *testing.T, pair string, run int, first, direct time.Duration) {
	t.Helper()
	old := r.read(t)
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := fmt.Sprintf("\n## %s, %s\n\n`make nat`: pings, 50 a second; milliseconds from the start of the program that pings.\n\n"+
		"| time (UTC) | commit | pair | run | first answer | direct |\n|---|---|---|---|---|---|\n", r.day, machine())
	if strings.Contains(old, head) {
		head = ""
	}
	ms := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return strconv.FormatInt(d.Milliseconds(), 10)
	}
	commit, _ := exec.Command("git", "-C", root, "rev-parse", "--short", "HEAD").Output()
	_, err = fmt.Fprintf(f, "%s| %s | %s | %s | %d | %s | %s |\n", head, r.day+" "+time.Now().UTC().Format(time.TimeOnly),
		strings.TrimSpace(string(commit)), pair, run, ms(first), ms(direct))
	if err != nil {
		t.Fatal(err)
	}
}

// machine says what this is.
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return fmt.Sprintf("%s %s %s, %d CPUs", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())
}
