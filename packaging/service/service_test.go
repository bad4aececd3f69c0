package service

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	worst   = 2.5 // exposure that systemd-analyze may find
	program = "/usr/bin/true"
)

// units writes both units into a directory, for a program that exists.
func units(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, of := range map[string]func(string) (string, error){Name: Systemd, Online: SystemdOnline} {
		text, err := of(program)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".service"), []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func needAnalyze(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err == nil {
		return
	}
	if os.Getenv("PILOT_REQUIRE_TOOLS") == "1" {
		t.Fatal("systemd-analyze (package systemd) is missing, and PILOT_REQUIRE_TOOLS=1 forbids to skip")
	}
	t.Skip("needs systemd-analyze (package systemd)")
}

func TestSystemdUnderstandsTheUnits(t *testing.T) {
	needAnalyze(t)
	dir := units(t)
	// --man=no: the manual page is not installed here.
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, Name+".service"), filepath.Join(dir, Online+".service")).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestUnitsAreHardened(t *testing.T) {
	needAnalyze(t)
	dir := units(t)
	found := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for _, name := range []string{Name, Online} {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", filepath.Join(dir, name+".service")).CombinedOutput()
		m := found.FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		score, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil || score > worst {
			t.Errorf("%s: exposure %s, want %v at most: %s", name, m[1], worst, out)
		}
		t.Logf("%s: exposure %v", name, score)
	}
}

// A crash of the Go runtime, and the signal of the watchdog, end a program with 2: such an
// agent has to be started anew.
func TestCrashesAreRestarted(t *testing.T) {
	text, err := Systemd(program)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindStringSubmatch(text)
	if m == nil || slices.Contains(strings.Fields(m[1]), "2") || !strings.Contains(text, "\nRestart=on-failure\n") {
		t.Errorf("%q", m)
	}
}

// decode reads the value of a property list that d stands before.
func decode(d *xml.Decoder, start xml.StartElement) (any, error) {
	switch start.Name.Local {
	case "dict":
		dict := map[string]any{}
		key := ""
		for {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			switch e := token.(type) {
			case xml.EndElement:
				return dict, nil
			case xml.StartElement:
				if e.Name.Local == "key" {
					if err := d.DecodeElement(&key, &e); err != nil {
						return nil, err
					}
					continue
				}
				if _, twice := dict[key]; twice || key == "" {
					return nil, errors.New("a value without a key of its own: " + key)
				}
				if dict[key], err = decode(d, e); err != nil {
					return nil, err
				}
			}
		}
	case "array":
		var list []any
		for {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			switch e := token.(type) {
			case xml.EndElement:
				return list, nil
			case xml.StartElement:
				v, err := decode(d, e)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
		}
	case "true", "false":
		return start.Name.Local == "true", d.Skip()
	case "string":
		var s string
		err := d.DecodeElement(&s, &start)
		return s, err
	case "integer":
		var n int
		err := d.DecodeElement(&n, &start)
		return n, err
	}
	return nil, errors.New("no such element in a property list: " + start.Name.Local)
}

func parsePlist(text string) (any, error) {
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local == "plist" {
			continue
		}
		value, err := decode(d, start)
		if err != nil {
			return nil, err
		}
		for { // well-formed to the end
			if _, err := d.Token(); err == io.EOF {
				return value, nil
			} else if err != nil {
				return nil, err
			}
		}
	}
}

func TestPropertyList(t *testing.T) {
	text, err := Launchd("/usr/local/bin/a&b")
	if err != nil {
		t.Fatal(err)
	}
	value, err := parsePlist(text)
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	got := value.(map[string]any)
	if got["Label"] != Label || got["RunAtLoad"] != true || got["ProcessType"] != "Interactive" || got["ThrottleInterval"] != 5 || got["Umask"] != 0o077 {
		t.Errorf("%v", got)
	}
	if args := got["ProgramArguments"].([]any); !slices.Equal(args, []any{"/usr/local/bin/a&b", "daemon", "run"}) {
		t.Errorf("arguments %v", args)
	}
	if keep := got["KeepAlive"].(map[string]any); keep["SuccessfulExit"] != false || len(keep) != 1 {
		t.Errorf("keep alive %v", keep)
	}
	if path := got["StandardErrorPath"].(string); !strings.HasPrefix(path, "/var/log/") {
		t.Errorf("the log is %s", path)
	}
	if _, err := parsePlist(strings.Replace(text, "</array>", "", 1)); err == nil {
		t.Error("the parser accepts a broken list")
	}
}

func TestPaths(t *testing.T) {
	for _, path := range []string{"", "pilotctl", "./pilotctl", "/a b/pilotctl", "/a%n", "/a$b", "/a\nb", `/a"b`, `/a\b`, "/{{Path}}"} {
		for _, of := range []func(string) (string, error){Systemd, SystemdOnline, Launchd} {
			if _, err := of(path); !errors.Is(err, ErrPath) {
				t.Errorf("%q: %v", path, err)
			}
		}
	}
	text, err := Systemd("/opt/pilot/pilotctl")
	if err != nil || !strings.Contains(text, "\nExecStart=/opt/pilot/pilotctl daemon run\n") || strings.Contains(text, placeholder) || strings.Contains(text, "{{") {
		t.Errorf("%v:\n%s", err, text)
	}
}
