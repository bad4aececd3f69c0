package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
)

const manSection = 8

func (p *program) manCommand() *cli.Command {
	return &cli.Command{
		Name:        "man",
		Usage:       "print the manual page",
		Description: "In the format of man: pilotctl man | man -l -",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			page, err := c.App.ToManWithSection(manSection)
			if err != nil {
				return overlay.Errorf(overlay.CodeInternal, "make the manual page: %v", err)
			}
			return p.result(map[string]string{"page": page}, func(w io.Writer) { io.WriteString(w, page) })
		},
	}
}
