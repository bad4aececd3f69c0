// Package pilot_test holds the house together: it reads the imports of every
// package and fails where one reaches for what its layer must not hold. It
// checks three things and no more: the import table, that every package says
// what it is, and that go.mod replaces nothing.
package pilot_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pilotnet/pilot"

// A room is a package with what lies below it, up to the next room. Rooms on
// one level do not import each other; a lower one never holds an upper one.
//
//	L3                cmd
//	L2              overlay   natt/rendezvous
//	          +-----+---+----+------+
//	L1      trust  ipam    natt     |
//	          +-----+---+----+      |
//	L0               crypto        tun
type room struct {
	may   []string // other rooms of ours that it may import
	never []string // import paths of others, each with all below it
	why   string   // the rule that a forbidden import breaks
}

var rooms = map[string]room{
	"crypto": {
		never: []string{"net", "os"},
		why:   "crypto is bytes and time in, bytes out: it imports nothing of ours, no sockets (net/netip is data and allowed) and no files",
	},
	"tun": {
		why: "tun moves packets between the kernel and its caller: it imports nothing of ours and knows neither keys nor peers",
	},
	"ipam": {
		may:   []string{"crypto"},
		never: []string{"net"},
		why:   "ipam is the address plan: it knows keys only, opens no sockets and does not decide whom to trust",
	},
	"ipam/dns": {
		may: []string{"crypto", "ipam"},
		why: "the resolver turns the names it is given into answers: it knows the address plan, and neither peers nor the TUN",
	},
	"trust": {
		may:   []string{"crypto"},
		never: []string{"net"},
		why:   "trust answers whether a key may do something: it knows keys only, does no network I/O, and addresses are opaque bytes to it",
	},
	"natt": {
		may:   []string{"crypto"},
		never: []string{"golang.zx2c4.com/wireguard/tun"},
		why:   "natt finds a way to a key on the underlay: it knows neither the TUN nor trust, and not the server, which stands above it",
	},
	"natt/rendezvous": {
		may: []string{"crypto", "ipam", "natt", "overlay/services/disk"},
		why: "the rendezvous server checks claims and relays frames: it never learns the trust graph and is no part of a node",
	},
	"overlay": {
		may:   []string{"crypto", "ipam", "ipam/dns", "natt", "overlay/firewall", "overlay/services/disk", "trust", "tun"},
		never: []string{"flag", "github.com/urfave/cli", "github.com/BurntSushi/toml"},
		why:   "overlay joins the rooms below it: flags and file formats end in cmd, and the server is its peer on the network, not its library",
	},
	"overlay/firewall": {
		may:   []string{"ipam", "trust", "tun"},
		never: []string{"net", "os"},
		why:   "the firewall decides on bytes by grants: it knows neither sessions nor sockets (its tests make packets with ipam and tun)",
	},
	"overlay/services/disk": {
		never: []string{"net"},
		why:   "disk keeps files and databases: it knows neither who fills them nor the network",
	},
	"cmd": {
		may: []string{"crypto", "ipam", "ipam/dns", "natt", "natt/rendezvous", "overlay", "overlay/services/disk", "packaging/service", "trust", "tun"},
		why: "cmd wires everything, so nothing may import it",
	},
	"packaging/service": {
		why: "packaging/service is texts for service managers: it imports nothing of ours",
	},
	"packaging": {
		why: "packaging builds and measures the program from outside, as users get it: it imports nothing of ours",
	},
}

// source is a package as the test sees it: its files without the tests.
type source struct {
	dir     string // slash-separated, below the module
	files   map[string]*ast.File
	imports map[string][]string // import path -> files
}

// sources parses every package of the module, for every operating system.
// Tests are left out: they may take fixtures and partners from any room.
func sources(t *testing.T) []*source {
	t.Helper()
	found := map[string]*source{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		s := found[dir]
		if s == nil {
			s = &source{dir: dir, files: map[string]*ast.File{}, imports: map[string][]string{}}
			found[dir] = s
		}
		s.files[base] = file
		for _, spec := range file.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports[p] = append(s.imports[p], base)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list := make([]*source, 0, len(found))
	for _, s := range found {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *source) int { return strings.Compare(a.dir, b.dir) })
	return list
}

// below reports whether p is root or lies below it.
func below(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

// roomOf returns the innermost room that holds dir, or "".
func roomOf(dir string) string {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ok := rooms[dir]; ok {
			return dir
		}
	}
	return ""
}

// forTests reports whether a package is there for tests only.
func forTests(dir string) bool {
	return strings.HasSuffix(dir, "test") || below(dir, "natt/natlab")
}

func TestImports(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		from := roomOf(s.dir)
		if from == "" {
			t.Errorf("%s is in no room: give it a place in the table of this test, or better in an existing room", s.dir)
			continue
		}
		r := rooms[from]
		for p, files := range s.imports {
			dir, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				for _, banned := range r.never {
					if below(p, banned) && p != "net/netip" {
						t.Errorf("%s imports %s (%s): %s", s.dir, p, strings.Join(files, ", "), r.why)
					}
				}
				continue
			}
			to := roomOf(dir)
			if to != from && !slices.Contains(r.may, to) {
				t.Errorf("%s imports %s (%s): %s", s.dir, dir, strings.Join(files, ", "), r.why)
			}
			if forTests(dir) && !forTests(s.dir) {
				t.Errorf("%s imports %s (%s): test doubles are injected by tests and are no part of the program", s.dir, dir, strings.Join(files, ", "))
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		var name string
		var comments []string
		for _, file := range s.files {
			name = file.Name.Name
			if file.Doc != nil {
				comments = append(comments, strings.TrimSpace(file.Doc.Text()))
			}
		}
		want := "Package " + name + " "
		if name == "main" { // as in the Go distribution: "Gofmt formats ..."
			base := path.Base(s.dir)
			want = strings.ToUpper(base[:1]) + base[1:] + " "
		}
		if !slices.ContainsFunc(comments, func(c string) bool { return strings.HasPrefix(c, want) }) {
			t.Errorf("%s has no package comment that begins %q: it is the specification that users read", s.dir, want)
		}
	}
}

func TestNoReplace(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if line := regexp.MustCompile(`(?m)^[ \t]*replace\b.*$`).Find(mod); line != nil {
		t.Errorf("go.mod has %q: \"go install\" of the module refuses it, and users would build something else than we test", line)
	}
}
