package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/transfer"
	"github.com/pilotnet/pilot/trust"
)

// minPassphrase is the shortest passphrase of an export, in bytes.
const minPassphrase = 8

// configName is what the settings are called in an export.
const configName = "config.toml"

const passphraseText = `The passphrase comes from PILOT_PASSPHRASE, from the file that PILOT_PASSPHRASE_FILE
names, or from the terminal.`

func (p *program) idExportCommand() *cli.Command {
	return &cli.Command{
		Name:  "export",
		Usage: "write this agent, its address and its trust into a sealed file",
		Description: `The agent must be down, and stay so: start it again only where the file was imported.
Of two that run, the one started later wins. What peers sent (files, tasks, events) is not
in the file. ` + passphraseText,
		Flags: []cli.Flag{&cli.StringFlag{Name: "out", Usage: "the file to make (required)"}},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			return p.exportAgent(c, at)
		},
	}
}

// A moved agent is what export and import tell.
type moved struct {
	overlay.ID
	File     string `json:"file"`
	StateDir string `json:"state_dir"`
}

func (p *program) exportAgent(c *cli.Context, at places) error {
	out := c.String("out")
	if out == "" {
		return usagef("where to? give --out FILE").WithHint("for example: pilotctl id export --out agent.pilot")
	}
	id, err := readIdentity(at)
	if errors.Is(err, errNoIdentity) {
		return noAgent(at)
	}
	if err != nil {
		return err
	}
	set, err := p.settings(c, at)
	if err != nil {
		return err
	}
	unlock, err := lockStore(at.state)
	if err != nil {
		return err
	}
	defer unlock()
	files, err := stateFiles(at)
	if err != nil {
		return err
	}
	passphrase, err := p.passphrase(true)
	if err != nil {
		return err
	}
	sealed, err := transfer.Seal(files, passphrase)
	if err != nil {
		return overlay.Errorf(overlay.CodeInternal, "%v", err)
	}
	temp, err := writeTemp(out, sealed, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	err = os.Link(temp, out) // unlike a rename, this fails where there is one
	if errors.Is(err, fs.ErrExist) {
		return overlay.Errorf(overlay.CodeConflict, "%s is there already", out).WithHint("choose another name, or remove it")
	}
	if err != nil {
		return systemError("write the file", err)
	}
	m := moved{ID: describe(id, set), File: out, StateDir: at.state}
	return p.result(m, func(w io.Writer) {
		fmt.Fprintf(w, "%s is exported\n", m.Address)
		facts(w, "file", m.File)
		fmt.Fprintln(w, "next: bring the file to the other machine; there: pilotctl id import FILE, then pilotctl up; leave this one down")
	})
}

// stateFiles reads what makes an agent: the plain files of its state directory,
// and its name and servers.
func stateFiles(at places) (map[string][]byte, error) {
	entries, err := os.ReadDir(at.state)
	if err != nil {
		return nil, systemError("read the state", err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() || strings.HasPrefix(name, ".") || strings.HasPrefix(name, logFile) || name == configName || name == trust.LockFile {
			continue
		}
		if files[name], err = os.ReadFile(filepath.Join(at.state, name)); err != nil {
			return nil, systemError("read the state", err)
		}
	}
	file, err := readConfig(at.config)
	if err != nil {
		return nil, err
	}
	var config bytes.Buffer
	fmt.Fprintf(&config, "name = %q\nservers = [%s]\n", file.Name, joinQuoted(file.Servers))
	files[configName] = config.Bytes()
	return files, nil
}

func (p *program) idImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make the agent of an exported file this machine's",
		ArgsUsage: "FILE",
		Description: `Nothing is replaced: where there is an agent, or the trust of one, it is refused.
` + passphraseText,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a file")
			if err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			return p.importAgent(at, args[0])
		},
	}
}

func (p *program) importAgent(at places, path string) error {
	if _, err := readIdentity(at); !errors.Is(err, errNoIdentity) {
		if err == nil {
			err = identityExists(at)
		}
		return err
	}
	sealed, err := readExport(path)
	if err != nil {
		return err
	}
	passphrase, err := p.passphrase(false)
	if err != nil {
		return err
	}
	files, err := transfer.Open(sealed, passphrase)
	if err != nil {
		return importError(path, err)
	}
	id, err := ipam.ParseIdentity(files[identityFile])
	if err == nil {
		err = id.Verify()
	}
	if err != nil {
		return importError(path, fmt.Errorf("%w: %w", transfer.ErrDamaged, err))
	}
	given, err := parseConfig(bytes.NewReader(files[configName]))
	if err != nil {
		return importError(path, fmt.Errorf("%w: %w", transfer.ErrDamaged, err))
	}
	set, err := given.check()
	if err != nil {
		return err
	}
	if err := placeFiles(at, files); err != nil {
		return err
	}
	differs, err := saveConfig(at.config, rawSettings{Name: given.Name, Servers: given.Servers})
	if err != nil {
		return err
	}
	p.noteDiffering(at, differs)
	m := moved{ID: describe(id, set), File: path, StateDir: at.state}
	return p.result(m, func(w io.Writer) {
		fmt.Fprintf(w, "%s has moved here\n", m.Address)
		facts(w, "state", m.StateDir, "config", at.config)
		fmt.Fprintln(w, "next: pilotctl up, once the agent is down where it came from; then remove the file")
	})
}

func readExport(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, overlay.Errorf(overlay.CodeNotFound, "there is no file %s", path).
			WithHint("pilotctl id export --out FILE makes one, where the agent is now; bring it here")
	}
	if err != nil {
		return nil, usagef("read the exported agent: %v", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, transfer.MaxSize+1<<10))
	if err != nil {
		return nil, usagef("read the exported agent: %v", err)
	}
	return b, nil
}

// placeFiles writes the files of an agent, its identity last: without that there is
// no agent, and a call that was cut off can be made again after what it left is removed.
func placeFiles(at places, files map[string][]byte) error {
	if err := os.MkdirAll(at.state, 0o700); err != nil {
		return systemError("make the state directory", err)
	}
	for name := range files {
		if _, err := os.Lstat(filepath.Join(at.state, name)); name != configName && err == nil {
			return overlay.Errorf(overlay.CodeConflict, "%s is there already, of another agent", filepath.Join(at.state, name)).
				WithHint("choose another --state-dir, or move what is in this one away")
		}
	}
	for name, data := range files {
		if name == identityFile || name == configName {
			continue
		}
		if err := replaceFile(filepath.Join(at.state, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := replaceFile(filepath.Join(at.state, identityFile), files[identityFile], 0o600); err != nil {
		return err
	}
	return syncDir(at.state)
}

func importError(path string, err error) error {
	switch {
	case errors.Is(err, transfer.ErrPassphrase):
		return overlay.Errorf(overlay.CodeDenied, "%s: wrong passphrase", path).WithHint("it is the one that was given to pilotctl id export")
	case errors.Is(err, transfer.ErrNewer):
		return overlay.Errorf(overlay.CodeInvalidArgument, "%s was exported by a newer version", path).WithHint("install that version of pilotctl here")
	case errors.Is(err, transfer.ErrForeign):
		return usagef("%s is not an exported agent", path).WithHint("pilotctl id export --out FILE makes one")
	}
	return usagef("%s: %v", path, err).WithHint("copy the file again, or export the agent again")
}

// passphrase reads the passphrase; a new one that is typed is typed twice.
func (p *program) passphrase(isNew bool) ([]byte, error) {
	secret, err := p.readPassphrase(isNew)
	if err != nil {
		return nil, err
	}
	if len(secret) == 0 || isNew && len(secret) < minPassphrase {
		return nil, usagef("the passphrase has %d bytes: want %d at least", len(secret), minPassphrase)
	}
	return secret, nil
}

func (p *program) readPassphrase(isNew bool) ([]byte, error) {
	if text := p.getenv("PILOT_PASSPHRASE"); text != "" {
		return []byte(text), nil
	}
	if path := p.getenv("PILOT_PASSPHRASE_FILE"); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, usagef("PILOT_PASSPHRASE_FILE: %v", err)
		}
		return bytes.TrimRight(text, "\r\n"), nil
	}
	in, ok := p.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, usagef("no passphrase").WithHint("set PILOT_PASSPHRASE or PILOT_PASSPHRASE_FILE, or call it from a terminal")
	}
	ask := func(what string) ([]byte, error) {
		fmt.Fprint(p.stderr, what)
		defer fmt.Fprintln(p.stderr)
		return term.ReadPassword(int(in.Fd()))
	}
	secret, err := ask("passphrase: ")
	if err != nil || !isNew {
		return secret, err
	}
	again, err := ask("the same again: ")
	if err == nil && !bytes.Equal(secret, again) {
		return nil, usagef("the two passphrases differ")
	}
	return secret, err
}
