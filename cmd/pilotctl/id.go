package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

func (p *program) idCommand() *cli.Command {
	return &cli.Command{
		Name:        "id",
		Usage:       "say who this agent is, and its contact to give to others; move it to another machine",
		UsageText:   "pilotctl id [export --out FILE | import FILE]",
		Subcommands: []*cli.Command{p.idExportCommand(), p.idImportCommand()},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			id, running, err := p.identify(c, at)
			if err != nil {
				return err
			}
			return p.result(id, func(w io.Writer) {
				fmt.Fprintln(w, id.Name)
				facts(w, "address", id.Address, "ula", id.ULA, "fingerprint", id.Fingerprint, "contact", id.Contact)
				switch {
				case !running:
					facts(w, "daemon", "not running")
				case !id.Claimed:
					facts(w, "claim", "unclaimed: no home server has confirmed the address yet")
				}
			})
		},
	}
}

// identify asks the daemon, or the files when there is none.
func (p *program) identify(c *cli.Context, at places) (id overlay.ID, running bool, err error) {
	id, err = api.NewClient(at.socket).ID(c.Context)
	if err == nil || api.AsError(err).Code != overlay.CodeNotRunning {
		return id, err == nil, err
	}
	set, err := p.settings(c, at)
	if err != nil {
		return id, false, err
	}
	own, err := readIdentity(at)
	if errors.Is(err, errNoIdentity) {
		return id, false, noAgent(at)
	}
	if err != nil {
		return id, false, err
	}
	return describe(own, set), false, nil
}
