package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

const logTail = 64 << 10 // of the daemon's log, from its end

func (p *program) bugreportCommand() *cli.Command {
	return &cli.Command{
		Name:  "bugreport",
		Usage: "write one file for whoever is to find a fault, without secrets",
		Description: `The file is text: version, settings with their origin, status, netcheck, doctor,
counters, and the end of the daemon's log. Names, addresses, keys, tokens and
public IP addresses are replaced, the same one by the same word everywhere.
Nothing is sent anywhere: read it, and pass it on yourself.`,
		Flags: []cli.Flag{&cli.StringFlag{Name: "out", Usage: "write to this file, or - for standard output; default: pilot-bugreport-TIME.txt here"}},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			return p.bugreport(c)
		},
	}
}

func (p *program) bugreport(c *cli.Context) error {
	path := either(c.String("out"), "pilot-bugreport-"+p.now().UTC().Format("20060102-150405")+".txt")
	if path == "-" && p.json {
		return usagef("--out - and --json both want standard output").WithHint("give --out a file")
	}
	text, err := p.report(c)
	if err != nil {
		return err
	}
	if path == "-" {
		_, err := p.stdout.Write(text)
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if err := writeNew(path, text); err != nil {
		return err
	}
	return p.result(map[string]any{"file": path, "bytes": len(text)}, func(w io.Writer) {
		fmt.Fprintf(w, "%s (%s)\n", path, bytesText(uint64(len(text))))
		fmt.Fprintln(w, "read it before you pass it on: names, keys and public addresses are replaced, your own words in the log may not be")
	})
}

// writeNew never replaces a file.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return overlay.Errorf(overlay.CodeConflict, "%s is there already", path).WithHint("choose another file with --out")
	}
	if err != nil {
		return systemError("write the report", err)
	}
	if _, err := f.Write(text); err != nil {
		f.Close()
		os.Remove(path)
		return systemError("write the report", err)
	}
	if err := f.Close(); err != nil {
		return systemError("write the report", err)
	}
	return nil
}

// report collects everything, and then replaces whatever tells who somebody is.
func (p *program) report(c *cli.Context) ([]byte, error) {
	at, err := p.places(c)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "Pilot bug report, %s\n", p.now().UTC().Format("2006-01-02 15:04:05 UTC"))
	section := func(title string, body func(w io.Writer) error) {
		fmt.Fprintf(&text, "\n== %s ==\n", title)
		if err := body(&text); err != nil {
			fmt.Fprintf(&text, "not available: %v\n", err)
		}
	}
	client := api.NewClient(at.socket)
	var facts knownFacts
	if name, err := os.Hostname(); err == nil {
		facts.host = name
	}
	section("version", func(w io.Writer) error {
		b := thisBuild()
		fmt.Fprintf(w, "pilotctl %s %s %s %s\n%s\n", b.Version, b.Revision, b.Go, b.Platform, systemText())
		return nil
	})
	section("settings", func(w io.Writer) error {
		list, err := p.showSettings(c)
		settingsText(w, list, true)
		fmt.Fprintf(w, "proxy variables: %s\n", strings.Join(p.proxyVariables(), " "))
		return err
	})
	section("doctor", func(w io.Writer) error {
		d, err := p.diagnose(c)
		d.text(w)
		return err
	})
	section("status", func(w io.Writer) error {
		s, err := client.Status(c.Context)
		if err != nil {
			return err
		}
		facts.add(s)
		return indented(w, withoutWords(s))
	})
	section("netcheck", func(w io.Writer) error {
		n, err := client.Netcheck(c.Context)
		if err != nil {
			return err
		}
		return indented(w, n)
	})
	section("published", func(w io.Writer) error {
		list, err := client.Served(c.Context)
		if err != nil {
			return err
		}
		return indented(w, list)
	})
	section("requests sent", func(w io.Writer) error {
		list, err := client.Outgoing(c.Context)
		if err != nil {
			return err
		}
		facts.requests(list)
		return indented(w, withoutReasons(list))
	})
	section("log", func(w io.Writer) error { return copyTail(w, filepath.Join(at.state, logFile)) })
	for _, name := range proxyNames() {
		facts.proxy(p.getenv(name))
	}
	if set, err := p.settings(c, at); err == nil {
		facts.settings(set)
	}
	return newRedactor(facts).redact(text.Bytes()), context.Cause(c.Context)
}

// proxyVariables names those that are set. Their values hold passwords.
func (p *program) proxyVariables() []string {
	set := []string{}
	for _, name := range proxyNames() {
		if p.getenv(name) != "" {
			set = append(set, name)
		}
	}
	if len(set) == 0 {
		set = append(set, "none")
	}
	return set
}

func proxyNames() []string {
	return []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"}
}

// withoutWords leaves out what other people wrote.
func withoutWords(s overlay.Status) overlay.Status {
	s.Requests = withoutReasons(s.Requests)
	return s
}

func withoutReasons(list []overlay.Request) []overlay.Request {
	out := make([]overlay.Request, len(list))
	for i, r := range list {
		r.Reason = fmt.Sprintf("(%d bytes)", len(r.Reason))
		out[i] = r
	}
	return out
}

func indented(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// copyTail copies the last lines of a file.
func copyTail(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	from := max(size-logTail, 0)
	text := make([]byte, size-from)
	if _, err := f.ReadAt(text, from); err != nil && err != io.EOF {
		return err
	}
	if from > 0 { // not from the middle of a line, nor of a secret
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	_, err = w.Write(text)
	return err
}

// systemText is the kernel and the distribution.
func systemText() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	text := strings.TrimSpace(runtime.GOOS + " " + strings.TrimSpace(string(kernel)))
	release, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			text += ", " + strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return text
}
