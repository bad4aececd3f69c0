package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// release is the version of this source tree.
const release = "0.1.0"

// A build says from what a binary was made.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print the version", Action: p.version}
}

func (p *program) version(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	b := thisBuild()
	return p.result(b, func(w io.Writer) {
		line := "pilotctl " + b.Version
		if b.Revision != "" {
			line += " (" + b.Revision + ")"
		}
		fmt.Fprintln(w, line, b.Go, b.Platform)
	})
}

func thisBuild() build {
	b := build{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Revision = s.Value[:min(12, len(s.Value))] + b.Revision
		case s.Key == "vcs.modified" && s.Value == "true":
			b.Revision += "+changes"
		}
	}
	return b
}
