package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// An ephemeral agent has its identity and state in a directory of its own on a file
// system in memory, which is removed when it ends. The name follows from the socket
// and the user, so that whoever starts or tidies up finds the same.

func (p *program) ephemeral(c *cli.Context) bool {
	return c.Bool("ephemeral") || p.getenv("PILOT_EPHEMERAL") == "1"
}

// memoryPlaces are the places of the ephemeral agent that has the socket of at.
func (p *program) memoryPlaces(at places) (places, error) {
	sum := sha256.Sum256([]byte(at.socket))
	dir, err := p.memoryDir(hex.EncodeToString(sum[:8]))
	return places{state: dir, socket: at.socket, config: filepath.Join(dir, "config.toml")}, err
}

// memoryDir names a directory in memory of this user.
func (p *program) memoryDir(name string) (string, error) {
	base := memoryBase(p.getenv("XDG_RUNTIME_DIR"))
	if base == "" {
		return "", overlay.Errorf(overlay.CodeInternal, "--ephemeral: this machine has no file system in memory that can be written").
			WithHint("mount one (mount -t tmpfs tmpfs DIR) and set XDG_RUNTIME_DIR=DIR")
	}
	return filepath.Join(base, "pilot-"+strconv.Itoa(os.Geteuid())+"-"+name), nil
}

// makeMemory makes the directory of an ephemeral agent, in the place of what a
// killed one has left, with a copy of the configuration in the usual place.
func makeMemory(at places, usualConfig string) error {
	if err := removeMemory(at); err != nil {
		return err
	}
	if err := os.Mkdir(at.state, 0o700); err != nil {
		return systemError("make a place in memory", err)
	}
	text, err := os.ReadFile(usualConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(at.config, text, 0o600)
	}
	if err != nil {
		return systemError("copy the configuration", err)
	}
	return nil
}

// removeMemory removes the directory of an ephemeral agent that runs no more. One
// that is not ours, or open to others, is left alone.
func removeMemory(at places) error {
	info, err := os.Lstat(at.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return systemError("look for the rest of an agent", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm() != 0o700 {
		return overlay.Errorf(overlay.CodeConflict, "%s is in the way: it is not a directory of ours alone", at.state).
			WithHint("choose another --socket, or remove it")
	}
	unlock, err := lockStore(at.state)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.RemoveAll(at.state); err != nil {
		return systemError("remove the rest of an agent", err)
	}
	return nil
}

// tidyMemory does what down does, for an ephemeral agent that was killed.
func (p *program) tidyMemory(at places, hosts string) error {
	m, err := p.memoryPlaces(at)
	if err != nil {
		return nil // then there was none
	}
	if _, err := os.Lstat(m.state); err != nil {
		return nil
	}
	if err := tidy(m, hosts); err != nil {
		return err
	}
	return removeMemory(m)
}

// leavePatience is how long an ephemeral agent that is to end tries to be forgotten.
const leavePatience = 1500 * time.Millisecond

// leave has the servers of an ephemeral agent forget it.
func leave(n api.Agent, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), leavePatience)
	defer cancel()
	list, err := n.Withdraw(ctx)
	if err != nil {
		logger.Warn("the claim is not withdrawn", "error", err)
	}
	for _, s := range list {
		if s.Gone {
			logger.Info("the claim is withdrawn", "server", s.Server)
			continue
		}
		logger.Warn("the claim is not withdrawn: the server goes on knowing this agent", "server", s.Server, "error", s.Error)
	}
}
