package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
)

func (p *program) initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make a key, its address and a configuration",
		Description: `Works offline and without root. The address follows from the key and is the
agent's for good. The name is a suggestion to others and defaults to the host's.
An identity that exists is never replaced.`,
		Flags: append(nodeFlags(),
			&cli.StringFlag{Name: "adopt", Usage: "move the agent in this state directory here, instead of making one"}),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			made, err := p.makeAgent(c, at)
			if err != nil {
				return err
			}
			return p.result(made, func(w io.Writer) {
				done := "is made"
				if c.IsSet("adopt") {
					done = "has moved here"
				}
				fmt.Fprintf(w, "%s %s\n", made.Name, done)
				made.facts(w)
				if made.Contact == "" {
					fmt.Fprintln(w, "next: pilotctl up --server HOST#KEY, with the line that a server printed")
				} else {
					fmt.Fprintln(w, "next: pilotctl up")
				}
			})
		},
	}
}

// An agentPlace is an identity and where it lies.
type agentPlace struct {
	overlay.ID
	StateDir string `json:"state_dir"`
	Config   string `json:"config"`
}

func (a agentPlace) facts(w io.Writer) {
	facts(w, "address", a.Address, "ula", a.ULA, "fingerprint", a.Fingerprint, "contact", a.Contact,
		"state", a.StateDir, "config", a.Config)
}

// makeAgent makes or adopts an identity at places where there is none, and the
// configuration file.
func (p *program) makeAgent(c *cli.Context, at places) (agentPlace, error) {
	if _, err := readIdentity(at); !errors.Is(err, errNoIdentity) {
		if err == nil {
			err = identityExists(at)
		}
		return agentPlace{}, err
	}
	given, err := p.given(c)
	if err != nil {
		return agentPlace{}, err
	}
	file, err := readConfig(at.config)
	if err != nil {
		return agentPlace{}, err
	}
	if from := c.String("adopt"); from != "" {
		old, err := adoptedConfig(from)
		if err != nil {
			return agentPlace{}, err
		}
		given = given.over(rawSettings{Name: old.Name, Servers: old.Servers})
	}
	given.Name = either(either(given.Name, file.Name), hostName())
	set, err := given.over(file).check()
	if err != nil {
		return agentPlace{}, err
	}
	id, err := p.newOrAdopted(c.Context, c.String("adopt"), at)
	if err != nil {
		return agentPlace{}, err
	}
	differs, err := saveConfig(at.config, rawSettings{Name: given.Name, Servers: given.Servers})
	if err != nil {
		return agentPlace{}, err
	}
	p.noteDiffering(at, differs)
	return agentPlace{ID: describe(id, set), StateDir: at.state, Config: at.config}, nil
}

func (p *program) noteDiffering(at places, keys []string) {
	if len(keys) > 0 {
		p.tell("note: %s keeps its own %s; edit it to make the change last", at.config, strings.Join(keys, " and "))
	}
}

func (p *program) newOrAdopted(ctx context.Context, from string, at places) (ipam.Identity, error) {
	if from != "" {
		return p.adopt(from, at)
	}
	if at.system {
		if theirs := sudoState(p.getenv); theirs != "" {
			return ipam.Identity{}, overlay.Errorf(overlay.CodeConflict,
				"this machine has no agent yet, but %s has one in %s", p.getenv("SUDO_USER"), theirs).
				WithHint("keep it: pilotctl init --adopt %s; or make a second one: SUDO_USER= pilotctl init", theirs)
		}
	}
	return p.makeIdentity(ctx, at)
}

// sudoState returns the state directory of the user who called sudo, if an agent
// is in it.
func sudoState(getenv func(string) string) string {
	name := getenv("SUDO_USER")
	if name == "" || name == "root" {
		return ""
	}
	u, err := user.Lookup(name)
	if err != nil {
		return ""
	}
	dir := userPlaces(host{getenv: func(key string) string {
		if key == "HOME" {
			return u.HomeDir
		}
		return ""
	}}).state
	if _, err := os.Lstat(filepath.Join(dir, identityFile)); err != nil {
		return ""
	}
	return dir
}
