package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/natt/rendezvous"
)

func (p *program) serverKeyCommand() *cli.Command {
	return &cli.Command{
		Name:        "key",
		Usage:       "print the server's public key; make it if there is none",
		Description: serverStateText,
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			dir, err := p.serverState(c)
			if err != nil {
				return err
			}
			key, err := rendezvous.LoadKey(dir)
			if err != nil {
				return systemError("the server's key", err)
			}
			public := key.Public().String()
			return p.result(map[string]string{"key": public, "state_dir": dir}, func(w io.Writer) { fmt.Fprintln(w, public) })
		},
	}
}
