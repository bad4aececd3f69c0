package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// errNoIdentity says that nothing was made at these places yet.
var errNoIdentity = errors.New("no identity")

// readIdentity reads who the agent at these places is.
func readIdentity(at places) (ipam.Identity, error) {
	path := filepath.Join(at.state, identityFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ipam.Identity{}, errNoIdentity
	}
	if err != nil {
		return ipam.Identity{}, systemError("read the identity", err)
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		return id, overlay.Errorf(overlay.CodeInternal, "%s is damaged: %v", path, err).
			WithHint("bring it back from a backup; a new identity (pilotctl init elsewhere) has another address")
	}
	return id, nil
}

// makeIdentity makes a key, searches its address and stores both. It never
// replaces an identity.
func (p *program) makeIdentity(ctx context.Context, at places) (ipam.Identity, error) {
	if err := disk.MakeDir(at.state); err != nil {
		return ipam.Identity{}, systemError("make the state directory", err)
	}
	key, err := p.newKey()
	if err != nil {
		return ipam.Identity{}, err
	}
	p.tell("making a key and its address (a second or two, once) ...")
	const step = 500
	id, err := ipam.NewIdentity(ctx, key, func(tried int) {
		if tried%step == 0 {
			p.tell("still searching: %d tries, 256 is the average", tried)
		}
	})
	if err != nil {
		return id, err
	}
	text, err := id.MarshalText()
	if err != nil {
		return id, err
	}
	path := filepath.Join(at.state, identityFile)
	temp, err := writeTemp(path, text, 0o600)
	if err != nil {
		return id, err
	}
	defer os.Remove(temp)
	err = os.Link(temp, path) // unlike a rename, this fails where there is one
	if errors.Is(err, fs.ErrExist) {
		return id, identityExists(at)
	}
	if err != nil {
		return id, systemError("write the identity", err)
	}
	return id, syncDir(at.state)
}

// syncDir makes new names in a directory durable.
func syncDir(dir string) error {
	if err := disk.SyncDir(dir); err != nil {
		return systemError("sync "+dir, err)
	}
	return nil
}

func noAgent(at places) error {
	return overlay.Errorf(overlay.CodeNotFound, "there is no agent in %s", at.state).
		WithHint("pilotctl init --name NAME --server HOST#KEY makes one; pilotctl up makes and starts it")
}

func identityExists(at places) error {
	whose := ""
	if id, err := readIdentity(at); err == nil {
		whose = ", " + id.Addr().String()
	}
	return overlay.Errorf(overlay.CodeConflict, "there is an identity already in %s%s", at.state, whose).
		WithHint("pilotctl up starts it; --state-dir DIR makes another one elsewhere")
}

// describe tells of an identity what can be told without its daemon.
func describe(id ipam.Identity, s settings) overlay.ID {
	key := id.Key.Public()
	d := overlay.ID{
		Name:        s.name,
		Address:     id.Addr().String(),
		ULA:         id.Addr().ULA().String(),
		Fingerprint: key.Fingerprint().String(),
	}
	if len(s.servers) > 0 {
		d.Contact = ipam.Contact{Addr: id.Addr(), Fingerprint: key.Fingerprint(), Host: s.servers[0].Host, Port: s.servers[0].Port}.String()
	}
	return d
}

// hostName makes an agent's name of the machine's, or of nothing.
func hostName() string {
	h, err := os.Hostname()
	if err != nil {
		return "agent"
	}
	return cleanName(h)
}

func cleanName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host)
	if len(name) > ipam.MaxName {
		name = name[:ipam.MaxName]
	}
	name = strings.Trim(name, "-")
	if ipam.ValidName(name) == nil {
		return name
	}
	if name = strings.TrimRight("agent-"+name, "-"); ipam.ValidName(name) == nil {
		return name
	}
	return "agent"
}
