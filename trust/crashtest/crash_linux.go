package crashtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

type opKind uint8

const (
	opWrite    opKind = iota
	opTruncate        // to the length at
	opName            // a name means a node from now on; nil: nothing any more
	opSync            // of a file or a directory
	opLost            // a sync that failed
	opAck
)

// An op is one change, sync or acknowledgement.
type op struct {
	kind     opKind
	node     *node
	at       int64
	data     []byte
	dir      *node
	name     string
	fromDir  *node // the name that is gone by the same step
	fromName string
	begin    int // sync: what lies before is durable when it ended, or may be lost
	ack      int
}

// A Log is what a program did in its directory.
type Log struct {
	ops  []op
	root *node
}

// Syncs returns how often the program synced a file or directory, and how many
// changes it made.
func (l *Log) Syncs() (syncs, changes int) {
	for _, o := range l.ops {
		switch o.kind {
		case opSync:
			syncs++
		case opAck, opLost:
		default:
			changes++
		}
	}
	return syncs, changes
}

const sector = 512

// Crash builds the directory as it may be found after n power failures, one for
// each seed from first on, and calls check with it and with what was acknowledged
// before. It reports what check refuses, and stops after the tenth.
func (l *Log) Crash(t testing.TB, first, n int, check func(dir string, acked []int) error) {
	t.Helper()
	base := t.TempDir()
	bad := 0
	for seed := first; seed < first+n; seed++ {
		dir := filepath.Join(base, fmt.Sprint(seed))
		acked, how, err := l.restore(dir, uint64(seed))
		if err != nil {
			t.Fatal(err)
		}
		if err := check(dir, acked); err != nil {
			t.Errorf("seed %d, %s: %v", seed, how, err)
			if bad++; bad == 10 {
				t.Fatal("and so on")
			}
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// How what was not synced survives.
const (
	keepSome   = iota // each by itself
	keepPrefix        // all up to some moment
	keepAll           // the process died, the machine did not
	keepNone
	keepModes
)

// restore builds one state and says what had been acknowledged.
func (l *Log) restore(dir string, seed uint64) (acked []int, how string, err error) {
	rng := rand.New(rand.NewPCG(seed, 512))
	end := rng.IntN(len(l.ops) + 1)
	mode := rng.IntN(keepModes)
	if rng.IntN(2) == 0 {
		mode = keepSome
	}
	durable := l.durable(end)
	until := end
	if mode == keepPrefix {
		until = rng.IntN(end + 1)
	}
	survives := func(i int) bool {
		switch {
		case durable[i], mode == keepAll:
			return true
		case mode == keepPrefix:
			return i < until
		case mode == keepNone:
			return false
		}
		return rng.IntN(2) == 0
	}
	content := map[*node][]byte{}
	names := map[*node]map[string]*node{l.root: {}}
	for i, o := range l.ops[:end] {
		switch o.kind {
		case opAck:
			acked = append(acked, o.ack)
		case opTruncate:
			if survives(i) {
				content[o.node] = resize(content[o.node], o.at)
			}
		case opWrite:
			for at, data := o.at, o.data; len(data) > 0; {
				n := min(len(data), int(sector-at%sector))
				if survives(i) {
					if b := content[o.node]; int64(len(b)) < at+int64(n) {
						content[o.node] = resize(b, at+int64(n))
					}
					copy(content[o.node][at:], data[:n])
				}
				at, data = at+int64(n), data[n:]
			}
		case opName:
			if survives(i) {
				rename(names, o)
			}
		}
	}
	how = fmt.Sprintf("after %d of %d steps, mode %d until %d, %d acknowledged", end, len(l.ops), mode, until, len(acked))
	return acked, how, build(dir, l.root, names, content)
}

// durable says of each op whether it is safe when the power fails after end ops. What
// was written before a sync that failed is not made safe by a later one.
func (l *Log) durable(end int) []bool {
	safe, waiting := make([]bool, end), map[*node][]int{}
	for i, o := range l.ops[:end] {
		switch o.kind {
		case opWrite, opTruncate:
			waiting[o.node] = append(waiting[o.node], i)
		case opName:
			waiting[o.dir] = append(waiting[o.dir], i)
		case opSync, opLost:
			var rest []int
			for _, w := range waiting[o.node] {
				switch {
				case w >= o.begin, o.kind == opLost && l.ops[w].kind != opWrite:
					rest = append(rest, w)
				case o.kind == opSync:
					safe[w] = true
				}
			}
			waiting[o.node] = rest
		}
	}
	return safe
}

func resize(b []byte, n int64) []byte {
	if int64(len(b)) >= n {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

func rename(names map[*node]map[string]*node, o op) {
	in := func(dir *node) map[string]*node {
		if names[dir] == nil {
			names[dir] = map[string]*node{}
		}
		return names[dir]
	}
	if o.fromDir != nil && in(o.fromDir)[o.fromName] == o.node {
		delete(in(o.fromDir), o.fromName)
	}
	if o.node == nil {
		delete(in(o.dir), o.name)
		return
	}
	in(o.dir)[o.name] = o.node
}

// build makes a directory and all below it.
func build(path string, n *node, names map[*node]map[string]*node, content map[*node][]byte) error {
	if n.names == nil {
		return os.WriteFile(path, content[n], 0o600)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	for name := range maps.Keys(names[n]) {
		if err := build(filepath.Join(path, name), names[n][name], names, content); err != nil {
			return err
		}
	}
	return nil
}
