package resolv

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeResolvconf keeps a file for each record below STATE and writes resolv.conf
// of them, those named lo.* first; static servers come before all.
const fakeResolvconf = `#!/bin/sh
set -e
cd STATE
echo "$*" >> ../calls
case $1 in
-i) ls interface ;;
-l) cat interface/* ;;
-a) cat > "interface/$2" ;;
-d) rm "interface/$2" ;;
*) exit 99 ;;
esac
case $1 in
-a | -d) cat ../static $(ls interface/lo.* 2>/dev/null || :; ls interface/eth*) > resolv.conf ;;
esac
`

// A confRig is a machine with a fake resolvconf whose servers are others.
type confRig struct {
	*resolvconf
	dir    string
	before string // resolv.conf as it was
}

func newConfRig(t *testing.T, others string) confRig {
	t.Helper()
	r := newResolvconf(Config{Server: testServer, Probe: testProbe, Tag: "abcdefghijklmnopqrstuvwxyz", Domain: testDomain})
	r.paths, r.server = testPaths(t), startStub(t)
	dir := filepath.Dir(r.paths.state)
	must(t, os.MkdirAll(filepath.Join(r.paths.state, "interface"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "resolvconf"), []byte(strings.ReplaceAll(fakeResolvconf, "STATE", r.paths.state)), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "static"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(r.paths.state, "interface", "eth0"), []byte(others), 0o644))
	must(t, os.WriteFile(filepath.Join(r.paths.state, "resolv.conf"), []byte(others), 0o644))
	must(t, os.Remove(r.paths.resolvConf))
	must(t, os.Symlink(filepath.Join(r.paths.state, "resolv.conf"), r.paths.resolvConf))
	return confRig{r, dir, others}
}

// changes are the calls that change something, since the last time.
func (r confRig) changes(t *testing.T) (list []string) {
	t.Helper()
	path := filepath.Join(r.dir, "calls")
	for line := range strings.Lines(read(t, path)) {
		if line = strings.TrimSpace(line); line != "-i" && line != "-l" {
			list = append(list, line)
		}
	}
	must(t, os.WriteFile(path, nil, 0o644))
	return list
}

const ourRecord = "lo.pilot-abcdefghijklmnop"

func TestResolvconf(t *testing.T) {
	t.Parallel()
	r := newConfRig(t, "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0\n")
	must(t, r.set(t.Context(), nil))
	if got, want := read(t, r.paths.resolvConf), "nameserver fd50:494c:4f54::35\n"+r.before; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	r.check()
	must(t, r.set(t.Context(), nil)) // all is as it was
	if got := r.changes(t); !slices.Equal(got, []string{"-a " + ourRecord}) {
		t.Errorf("calls %q", got)
	}
	must(t, r.undo(t.Context()))
	must(t, r.undo(t.Context())) // nothing is left to do
	if got := r.changes(t); !slices.Equal(got, []string{"-d " + ourRecord}) || read(t, r.paths.resolvConf) != r.before {
		t.Errorf("calls %q, resolv.conf is %q", got, read(t, r.paths.resolvConf))
	}

	r.Search = true
	must(t, r.set(t.Context(), nil))
	if got := read(t, r.paths.resolvConf); !strings.Contains(got, "\nsearch pilot.internal\n") {
		t.Errorf("with search resolv.conf is %q", got)
	}
	// Another process finds the record after this one was killed.
	next := newResolvconf(r.Config)
	next.paths = r.paths
	must(t, next.undo(t.Context()))
	if got := read(t, r.paths.resolvConf); got != r.before {
		t.Errorf("after the next start resolv.conf is %q", got)
	}
}

// TestResolvconfUnfit: where programs would not ask ours first and somebody else
// next, nothing is changed.
func TestResolvconfUnfit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		others, want string
		change       func(t *testing.T, r confRig)
	}{
		"three servers": {others: "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", want: "it has 3 name servers already"},
		"none":          {others: "search example\n", want: "names no other server"},
		"a forwarder":   {others: "nameserver 127.0.0.1\n", want: "a resolver of this machine (127.0.0.1)"},
		"rotate":        {others: "nameserver 192.0.2.1\noptions ndots:2 rotate\n", want: "option rotate"},
		"TCP":           {others: "nameserver 192.0.2.1\noptions use-vc\n", want: "option use-vc"},
		"a file of somebody": {others: "nameserver 192.0.2.1\n", want: "is not kept by it", change: func(t *testing.T, r confRig) {
			must(t, os.Remove(r.paths.resolvConf))
			must(t, os.WriteFile(r.paths.resolvConf, []byte(r.before), 0o644))
		}},
		"no dns in nsswitch": {others: "nameserver 192.0.2.1\n", want: `by "files" only`, change: func(t *testing.T, r confRig) {
			must(t, os.WriteFile(r.paths.nsswitch, []byte("hosts: files\n"), 0o644))
		}},
		"systemd's": {others: "nameserver 192.0.2.1\n", want: "no such program", change: func(t *testing.T, r confRig) {
			program := filepath.Join(r.dir, "resolvconf")
			must(t, os.Rename(program, filepath.Join(r.dir, "resolvectl")))
			must(t, os.Symlink("resolvectl", program))
		}},
		"another namespace": {others: "nameserver 192.0.2.1\n", want: "belongs to another network namespace", change: func(t *testing.T, r confRig) {
			// What looks like process 1 shares our files and no network namespace.
			must(t, os.MkdirAll(filepath.Join(r.dir, "1", "ns"), 0o755))
			must(t, os.WriteFile(filepath.Join(r.dir, "1", "ns", "net"), nil, 0o644))
			must(t, os.Symlink("/", filepath.Join(r.dir, "1", "root")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newConfRig(t, c.others)
			if c.change != nil {
				c.change(t, r)
			}
			if name == "another namespace" {
				r.paths.first = filepath.Join(r.dir, "1")
			}
			must(t, os.WriteFile(filepath.Join(r.dir, "calls"), nil, 0o644))
			if err := r.set(t.Context(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			if got := r.changes(t); len(got) != 0 || read(t, r.paths.resolvConf) != r.before {
				t.Errorf("calls %q, resolv.conf is %q", got, read(t, r.paths.resolvConf))
			}
		})
	}
}

// TestResolvconfNotFirst: a server that stays before ours is found out once, and
// not tried again before the servers are others.
func TestResolvconfNotFirst(t *testing.T) {
	t.Parallel()
	r := newConfRig(t, "nameserver 192.0.2.1\n")
	must(t, os.WriteFile(filepath.Join(r.dir, "static"), []byte(r.before), 0o644))
	for _, want := range [][]string{{"-a " + ourRecord, "-d " + ourRecord}, nil, nil} {
		r.check()
		if err := r.set(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "another name server stays before ours") {
			t.Errorf("err = %v", err)
		}
		if got := r.changes(t); !slices.Equal(got, want) {
			t.Errorf("calls %q, want %q", got, want)
		}
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "static"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(r.paths.state, "interface", "eth1"), []byte("nameserver 192.0.2.2\n"), 0o644))
	must(t, r.set(t.Context(), nil))
}

// TestResolvconfLost: what takes our server out of resolv.conf, or adds too many,
// is noticed at the next look.
func TestResolvconfLost(t *testing.T) {
	t.Parallel()
	r := newConfRig(t, "nameserver 192.0.2.1\n")
	must(t, r.set(t.Context(), nil))
	must(t, os.WriteFile(r.paths.resolvConf, []byte(r.before), 0o644))
	r.check()
	must(t, r.set(t.Context(), nil))
	if got := read(t, r.paths.resolvConf); !strings.HasPrefix(got, "nameserver fd50:494c:4f54::35\n") {
		t.Errorf("resolv.conf is %q", got)
	}
	more := "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
	must(t, os.WriteFile(filepath.Join(r.paths.state, "interface", "eth0"), []byte(more), 0o644))
	r.check()
	if err := r.set(t.Context(), nil); err == nil || read(t, r.paths.resolvConf) != more {
		t.Errorf("err = %v, resolv.conf is %q", err, read(t, r.paths.resolvConf))
	}
}

// TestResolvconfSilent: programs are not sent to a resolver that does not answer.
func TestResolvconfSilent(t *testing.T) {
	t.Parallel()
	r := newConfRig(t, "nameserver 192.0.2.1\n")
	r.Probe = "nobody.pilot.internal"
	if err := r.set(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "does not answer") || len(r.changes(t)) != 0 {
		t.Errorf("err = %v", err)
	}
}

// TestResolvconfManager: the manager takes resolvconf where systemd-resolved is
// not, the hosts file where neither fits, and tidies in that mode.
func TestResolvconfManager(t *testing.T) {
	t.Parallel()
	r := newConfRig(t, "nameserver 192.0.2.1\n")
	resolved := newResolved(Config{Device: "lo"})
	resolved.bus = "unix:path=" + filepath.Join(r.dir, "no-bus")
	hosts := hostsFile(t, "127.0.0.1 localhost\n")
	m := newManager(slog.New(slog.DiscardHandler), resolved, r.resolvconf, &hostsMeans{NewHosts(hosts, "a")})
	m.apply(t.Context(), bob)
	if s := m.Status(); s.Mode != Resolvconf || len(s.Notes) != 1 || !strings.HasPrefix(s.Notes[0], "systemd-resolved: ") {
		t.Errorf("status %+v", s)
	}
	must(t, os.WriteFile(r.paths.nsswitch, []byte("hosts: files\n"), 0o644))
	m.checkAll()
	m.apply(t.Context(), bob)
	if s := m.Status(); s.Mode != HostFile || !strings.Contains(read(t, hosts), "bob") || read(t, r.paths.resolvConf) != r.before {
		t.Errorf("status %+v, resolv.conf is %q", s, read(t, r.paths.resolvConf))
	}
	m.restore()

	must(t, os.WriteFile(r.paths.nsswitch, []byte("hosts: files dns\n"), 0o644))
	must(t, r.set(t.Context(), nil))
	if got := NewManager(Config{Mode: HostFile, Tag: "a"}).left; len(got) != 1 || got[0].mode() != Resolvconf {
		t.Errorf("left over %v", got)
	}
	m = newManager(slog.New(slog.DiscardHandler), &hostsMeans{NewHosts(hosts, "a")})
	m.left = []means{r.resolvconf}
	g := &rig{Manager: m}
	g.run(t)
	g.until(t, HostFile)
	if got := read(t, r.paths.resolvConf); got != r.before {
		t.Errorf("after a start with the hosts file resolv.conf is %q", got)
	}
}

func TestNoResolvconf(t *testing.T) {
	t.Parallel()
	p := testPaths(t)
	if _, err := p.tool(); !errors.Is(err, ErrNoResolvconf) {
		t.Errorf("err = %v", err)
	}
}
