package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestManifestsFitTheProgram: what the manifests, the image and the units make of pilotctl it
// understands: each command line, the value of --health, and each variable.
func TestManifestsFitTheProgram(t *testing.T) {
	d := newDesk(t)
	help, _, status := d.call(t.Context(), "", "daemon", "run", "--help")
	if status != 0 {
		t.Fatal(status)
	}
	general, _, _ := d.call(t.Context(), "", "--help")
	known, used := map[string]bool{}, map[string]bool{}
	for _, name := range regexp.MustCompile(`PILOT_[A-Z_]+`).FindAllString(help+general, -1) {
		known[name] = true
	}
	lines := 0
	understands := func(args []string) {
		t.Helper()
		lines++
		for i, arg := range args {
			if arg == "--health" {
				if _, err := healthAddress(args[i+1]); err != nil {
					t.Error(err)
				}
			}
		}
		stdout, stderr, status := d.call(t.Context(), "", append(args, "--help")...)
		if status != 0 || !strings.HasPrefix(stdout, "pilotctl ") || strings.HasPrefix(stdout, "pilotctl - ") {
			t.Errorf("%q: exit %d: %s%s", args, status, stdout, stderr)
		}
	}
	understandsNot := func(args ...string) {
		t.Helper()
		if stdout, _, status := d.call(t.Context(), "", append(args, "--help")...); status == 0 {
			t.Errorf("%q is accepted: %s", args, stdout)
		}
	}
	understandsNot("daemon", "run", "--inint")

	packaging := filepath.Join("..", "..", "packaging")
	read := func(path ...string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(append([]string{packaging}, path...)...))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	manifests := read("kubernetes", "sidecar.yaml") + "\n---\n" + read("container", "compose.yaml")
	for _, name := range regexp.MustCompile(`(?m)^\s+(?:- name: )?(PILOT_[A-Z_]+)\b`).FindAllStringSubmatch(manifests, -1) {
		if !known[name[1]] {
			t.Errorf("no such variable: %s", name[1])
		}
		used[name[1]] = true
	}
	if !used["PILOT_NAME"] || !used["PILOT_INVITE"] || !used["PILOT_INVITE_FILE"] {
		t.Error("the manifests do not enrol by themselves")
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if list, ok := value.([]any); ok && (key == "args" || key == "command" || key == "test") {
					var args []string
					for _, a := range list {
						args = append(args, a.(string))
					}
					if args[0] == "CMD" {
						args = args[1:]
					}
					if args[0] == "/pilotctl" {
						args = args[1:]
					}
					if args[0] != "python3" { // the program beside it
						understands(args)
					}
				}
				walk(value)
			}
		case []any:
			for _, value := range v {
				walk(value)
			}
		}
	}
	for doc := yaml.NewDecoder(strings.NewReader(manifests)); ; {
		var v map[string]any
		if doc.Decode(&v) != nil {
			break
		}
		walk(v)
	}
	for _, m := range regexp.MustCompile(`(?m)(?:-- /pilotctl|exec pilot pilotctl|^ExecStart=@PILOTCTL@) (.*)$`).
		FindAllStringSubmatch(manifests+"\n"+read("service", "pilot.service")+read("service", "pilot-online.service"), -1) {
		understands(strings.Fields(m[1]))
	}
	if lines != 7 {
		t.Errorf("%d command lines were found", lines)
	}
}
