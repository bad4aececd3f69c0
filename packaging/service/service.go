// Package service holds the files by which a machine's service manager runs the
// agent: two systemd units and a launchd property list. "pilotctl service" prints
// and installs them, and the deb and rpm packages carry them, so that there is
// one text of each.
//
// The systemd unit gives the daemon three capabilities and the TUN device, and
// nothing to write but its own directories and the files with which it makes
// names known. It runs as root without most of root's rights, because
// systemd-resolved takes orders about a link from root only.
package service

import (
	_ "embed"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// The names under which service managers know the agent.
const (
	Name   = "pilot"              // the systemd unit is pilot.service
	Online = "pilot-online"       // succeeds once a server knows the agent
	Label  = "net.pilotnet.pilot" // for launchd
	Group  = "pilot"              // whose members may use the agent's socket
)

const placeholder = "@PILOTCTL@"

//go:embed pilot.service
var unit string

//go:embed pilot-online.service
var online string

//go:embed net.pilotnet.pilot.plist
var plist string

// ErrPath says that the path of the program cannot stand in a service file: it is
// relative, or has characters with a meaning there.
var ErrPath = errors.New("service: a service needs an absolute path of plain characters")

// Systemd is the unit that runs the program at path.
func Systemd(path string) (string, error) { return fill(unit, path, path) }

// SystemdOnline is the unit that waits until a server knows the agent.
func SystemdOnline(path string) (string, error) { return fill(online, path, path) }

// Launchd is the property list that runs the program at path.
func Launchd(path string) (string, error) {
	var escaped strings.Builder
	if err := xml.EscapeText(&escaped, []byte(path)); err != nil {
		return "", err
	}
	return fill(plist, path, escaped.String())
}

func fill(text, path, written string) (string, error) {
	// systemd would expand % and $, and split at white space and quotes.
	if !filepath.IsAbs(path) || strings.ContainsFunc(path, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`%$"'\{}`, r)
	}) {
		return "", fmt.Errorf("%w: %q", ErrPath, path)
	}
	return strings.ReplaceAll(text, placeholder, written), nil
}
