package main

import (
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
)

func (p *program) serverCommand() *cli.Command {
	return &cli.Command{
		Name:        "server",
		Usage:       "run a rendezvous server, where agents find each other",
		Subcommands: []*cli.Command{p.serverRunCommand(), p.serverKeyCommand(), p.serverStatusCommand()},
	}
}

// serverState is the state directory of a server. It never follows
// PILOT_STATE_DIR, which is an agent's.
func (p *program) serverState(c *cli.Context) (string, error) {
	usual := "/var/lib/pilot-server"
	if os.Geteuid() != 0 {
		usual = filepath.Join(filepath.Dir(userPlaces(host{getenv: p.getenv}).state), "pilot-server")
	}
	return filepath.Abs(either(either(c.String("state-dir"), p.getenv("PILOT_SERVER_STATE_DIR")), usual))
}

const serverStateText = `The state directory is --state-dir, else PILOT_SERVER_STATE_DIR, else
/var/lib/pilot-server or, without root, ~/.local/state/pilot-server.`
