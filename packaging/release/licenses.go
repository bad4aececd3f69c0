package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// license is the name of a file that a module wants to be handed out with what is made of it.
var license = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)`)

// licenses has the license and notice files of all modules that are linked into a
// program for goos, and of Go's own library. Texts that several share are there once.
func licenses(program, goos string) ([]byte, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, err
	}
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Dir}}{{end}}", "./cmd/pilotctl")
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			dirs[path] = dir
		}
	}
	root, err := output("go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	l := licenseTexts{users: map[string][]string{}}
	if err := l.add("Go "+info.GoVersion, strings.TrimSpace(string(root))); err != nil {
		return nil, err
	}
	for _, dep := range info.Deps {
		dir := dirs[dep.Path]
		if dir == "" {
			return nil, fmt.Errorf("%s is linked, and go list does not know it", dep.Path)
		}
		if dep.Replace != nil {
			dep = dep.Replace
		}
		if err := l.add(dep.Path+" "+dep.Version, dir); err != nil {
			return nil, err
		}
	}
	return l.text(), nil
}

// licenseTexts are texts, and which modules have them.
type licenseTexts struct {
	texts []string // in the order in which they were met
	users map[string][]string
}

// add takes the texts in the directory of a module, which has to have one.
func (l *licenseTexts) add(module, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		if !e.Type().IsRegular() || !license.MatchString(e.Name()) || filepath.Ext(e.Name()) == ".go" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(data), "\r\n", "\n"))
		if l.users[text] == nil {
			l.texts = append(l.texts, text)
		}
		if user := module + ", " + e.Name(); !slices.Contains(l.users[text], user) {
			l.users[text] = append(l.users[text], user)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("%s has no license in %s", module, dir)
	}
	return nil
}

func (l *licenseTexts) text() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "What pilotctl was made of besides its own sources, and under which terms.")
	for _, text := range l.texts {
		fmt.Fprintf(&b, "\n%s\n\n", strings.Repeat("=", 79))
		for _, user := range l.users[text] {
			fmt.Fprintln(&b, user)
		}
		fmt.Fprintf(&b, "\n%s\n", text)
	}
	return b.Bytes()
}
