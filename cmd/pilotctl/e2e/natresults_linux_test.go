package e2e_test

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The file of results is rewritten after each portion: an introduction, a summary
// of all its rows, and the rows, which stay as they are. A measurement goes on
// from the rows that are there.
type natResults struct {
	path string
	mu   sync.Mutex
	// rows without the bars at both ends, oldest first
	pairs, events []string
}

const (
	pairsHead  = "| time (UTC) | commit | load | pair | runs | first packet, ms | direct, ms | lost around the upgrade/else | twice | registered after, ms |\n|---|---|---|---|---|---|---|---|---|---|\n"
	eventsHead = "| time (UTC) | commit | load | event | measured |\n|---|---|---|---|---|\n"
	pairsMark  = "## Every run of a pair\n\n"
	eventsMark = "## Every run of an event\n\n"
)

// openResults reads the file, if there is one.
func openResults(t *testing.T) *natResults {
	t.Helper()
	r := &natResults{path: filepath.Join(root, "natt", "natlab", "RESULTS.md")}
	b, err := os.ReadFile(r.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	text := string(b)
	r.pairs, r.events = rowsAfter(text, pairsMark+pairsHead), rowsAfter(text, eventsMark+eventsHead)
	return r
}

// rowsAfter returns the lines of a table that begins with that text.
func rowsAfter(text, head string) (list []string) {
	_, rest, _ := strings.Cut(text, head)
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "| ") {
			break
		}
		list = append(list, strings.TrimSpace(line))
	}
	return list
}

// columns are the texts of a row.
func columns(row string) []string {
	list := strings.Split(strings.Trim(row, "|"), "|")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

// stamp is what each row begins with.
func (r *natResults) stamp() string {
	b, _ := os.ReadFile("/proc/loadavg")
	text, _, _ := strings.Cut(string(b), " ")
	return fmt.Sprintf("| %s | %s | %s ", time.Now().UTC().Format(time.DateTime), commit(), text)
}

// commit is that of the checkout, marked if it has changes.
func commit() string {
	b, _ := exec.Command("git", "-C", root, "rev-parse", "--short", "HEAD").Output()
	name := strings.TrimSpace(string(b))
	changes, _ := exec.Command("git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", "*.go", "go.mod").Output()
	if len(changes) > 0 {
		name += "+changes"
	}
	return name
}

// addPair appends the runs of a cell.
func (r *natResults) addPair(t *testing.T, c cell, runs []pairRun) {
	t.Helper()
	if len(runs) == 0 {
		return
	}
	list := func(f func(pairRun) string) string {
		var texts []string
		for _, run := range runs {
			texts = append(texts, f(run))
		}
		return strings.Join(texts, " ")
	}
	row := r.stamp() + fmt.Sprintf("| %s | %d | %s | %s | %s | %s | %s |", c.name, len(runs),
		list(func(p pairRun) string { return ms(p.first) }), list(func(p pairRun) string { return ms(p.direct) }),
		list(func(p pairRun) string { return itoa(p.atUpgrade) + "/" + itoa(p.elsewhere) }), list(func(p pairRun) string { return itoa(p.twice) }),
		list(func(p pairRun) string { return ms(p.up[0]) + "/" + ms(p.up[1]) }))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pairs = append(r.pairs, row)
	r.write(t)
}

// addEvent appends a run of an event.
func (r *natResults) addEvent(t *testing.T, event string, values []measured) {
	t.Helper()
	var texts []string
	for _, v := range values {
		texts = append(texts, v.String())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, r.stamp()+"| "+event+" | "+strings.Join(texts, "; ")+" |")
	r.write(t)
}

func (r *natResults) write(t *testing.T) {
	t.Helper()
	text := intro + "\n" + r.summary() + "\n" + eventsMark + eventsHead + lines(r.events) + "\n" + pairsMark + pairsHead + lines(r.pairs)
	if err := os.WriteFile(r.path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path+".new", r.path); err != nil {
		t.Fatal(err)
	}
}

func lines(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "\n") + "\n"
}

// runsOf are the runs of each cell that the file has.
func (r *natResults) runsOf() map[string][]pairRun {
	m := map[string][]pairRun{}
	for _, row := range r.pairs {
		c := columns(row)
		if len(c) < 10 {
			continue
		}
		n, _ := strconv.Atoi(c[4])
		first, direct, lost, twice, up := strings.Fields(c[5]), strings.Fields(c[6]), strings.Fields(c[7]), strings.Fields(c[8]), strings.Fields(c[9])
		for i := range min(n, len(first), len(direct), len(lost), len(twice), len(up)) {
			var p pairRun
			p.first, p.direct = fromMS(first[i]), fromMS(direct[i])
			fmt.Sscanf(lost[i], "%d/%d", &p.atUpgrade, &p.elsewhere)
			fmt.Sscanf(twice[i], "%d", &p.twice)
			a, b, _ := strings.Cut(up[i], "/")
			p.up = [2]time.Duration{fromMS(a), fromMS(b)}
			m[c[3]] = append(m[c[3]], p)
		}
	}
	return m
}

// count is how many runs a cell has.
func (r *natResults) count(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.runsOf()[name])
}

// countEvent is how many runs an event has.
func (r *natResults) countEvent(name string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range r.events {
		if c := columns(row); len(c) >= 5 && c[3] == name {
			n++
		}
	}
	return n
}

// ms writes a duration in milliseconds; none as a dash.
func ms(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return strconv.FormatInt(max(1, d.Milliseconds()), 10)
}

func fromMS(text string) time.Duration {
	n, _ := strconv.Atoi(text)
	return time.Duration(n) * time.Millisecond
}

// percentile is the smallest value that so many percent do not exceed.
func percentile(list []float64, percent float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[max(0, int(math.Ceil(percent/100*float64(len(sorted))))-1)]
}

// wilson is the score interval of a share of n, for 95 percent confidence.
func wilson(k, n int) (low, high float64) {
	if n == 0 {
		return 0, 1
	}
	const z = 1.959964
	p, m := float64(k)/float64(n), float64(n)
	middle := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return max(0, middle-half), min(1, middle+half)
}

// machine says what this is.
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return fmt.Sprintf("%s %s %s, %d CPUs", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())
}

// A measured value of an event; NaN: it did not happen.
type measured struct {
	name  string
	value float64
}

func (m measured) String() string {
	if math.IsNaN(m.value) {
		return m.name + " -"
	}
	return m.name + " " + strconv.FormatFloat(m.value, 'f', -1, 64)
}
