package service

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const repository = "../.."

// functions are those of a file, as the table names them.
func functions(file *ast.File, dir string, want func(*ast.FuncDecl) bool) (names []string) {
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || !want(f) {
			continue
		}
		name := f.Name.Name
		if f.Recv != nil {
			of := f.Recv.List[0].Type
			if star, ok := of.(*ast.StarExpr); ok {
				of = star.X
			}
			if id, ok := of.(*ast.Ident); ok {
				name = id.Name + "." + name
			}
		}
		names = append(names, dir+" "+name)
	}
	return names
}

// speaksOfMacs says whether a function has a text by which macOS is told apart.
func speaksOfMacs(f *ast.FuncDecl) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING && slices.Contains([]string{`"darwin"`, `"launchd"`, `"utun"`}, l.Value) {
			found = true
		}
		return true
	})
	return found
}

// darwinFunctions are those of files for macOS alone, or that tell it apart; all that it
// has; and the tests that Linux runs, each with its package.
func darwinFunctions(t *testing.T) (list []string, all, tests map[string]bool) {
	t.Helper()
	mac, linux, bsd := build.Default, build.Default, build.Default
	mac.GOOS, mac.GOARCH, mac.CgoEnabled = "darwin", "arm64", false
	linux.GOOS, linux.CgoEnabled = "linux", false
	bsd.GOOS, bsd.GOARCH, bsd.CgoEnabled = "freebsd", "amd64", false // has what only stands in for Linux
	all, tests = map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(repository, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "dist" || strings.HasPrefix(d.Name(), ".") && name != repository) {
			return filepath.SkipDir
		}
		dir, base := filepath.Split(name)
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		onMac, err := mac.MatchFile(dir, base)
		if err != nil {
			return err
		}
		onLinux, err := linux.MatchFile(dir, base)
		if err != nil || !onMac && !onLinux {
			return err
		}
		onBSD, err := bsd.MatchFile(dir, base)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		at, err := filepath.Rel(repository, dir)
		if err != nil {
			return err
		}
		at = filepath.ToSlash(at)
		if onMac && !strings.HasSuffix(base, "_test.go") {
			for _, f := range functions(file, at, func(*ast.FuncDecl) bool { return true }) {
				all[f] = true
			}
		}
		switch {
		case strings.HasSuffix(base, "_test.go"):
			if onLinux {
				for _, test := range functions(file, at, func(f *ast.FuncDecl) bool { return strings.HasPrefix(f.Name.Name, "Test") }) {
					tests[test] = true
				}
			}
		case onMac && !onLinux && !onBSD:
			list = append(list, functions(file, at, func(*ast.FuncDecl) bool { return true })...)
		case onMac && onLinux && at != "packaging/release":
			list = append(list, functions(file, at, speaksOfMacs)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list, all, tests
}

var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\| (no|`(Test\\w+)`[^|]*) \\|")

// TestTableOfMacs: macos.md has each function of macOS, no other, and names only
// tests that there are.
func TestTableOfMacs(t *testing.T) {
	text, err := os.ReadFile("macos.md")
	if err != nil {
		t.Fatal(err)
	}
	list, all, tests := darwinFunctions(t)
	missing := map[string]bool{}
	for _, name := range list {
		missing[name] = true
	}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		name := m[1] + " " + m[2]
		if !all[name] {
			t.Errorf("macos.md has %s, which is no function, or twice", name)
		}
		delete(missing, name)
		delete(all, name)
		if m[4] != "" && !tests[m[1]+" "+m[4]] {
			t.Errorf("%s: no test %s in %s", name, m[4], m[1])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		dir, f := path.Split(strings.ReplaceAll(name, " ", "/"))
		t.Errorf("macos.md lacks a row:\n| `%s` | `%s` | no |", strings.TrimSuffix(dir, "/"), f)
	}
}
