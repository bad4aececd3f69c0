package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

// A node is what the daemon runs: an overlay.Node, or a test's.
type node interface {
	api.Agent
	Run(ctx context.Context) error
}

// openNode opens the agent's state, device and socket.
func openNode(config overlay.Config) (node, error) {
	n, err := overlay.New(config)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// nodeConfig is the node that the settings describe.
func nodeConfig(c *cli.Context, at places, set settings, id ipam.Identity, logger *slog.Logger) overlay.Config {
	config := overlay.Config{
		StateDir:   at.state,
		Name:       either(set.name, hostName()),
		Identity:   id,
		Servers:    set.servers,
		DeviceName: set.tun,
		Proxy:      set.proxy,
		Port:       set.port,
		DNS:        resolv.Mode(set.dns),
		DNSSearch:  set.search,
		HostsFile:  c.String("hosts-file"),
		Takeover:   c.Bool("takeover"),
		Services:   set.services,
		STUN:       set.stun,
		Version:    release,
		Logger:     logger,
	}
	switch set.tun {
	case autoDevice:
		config.DeviceName, config.Userspace = freeDevice(), overlay.UserspaceFallback
	case userspaceDevice:
		config.DeviceName, config.Userspace = "", overlay.UserspaceAlways
	}
	if set.proxy == noProxy {
		config.Proxy = ""
	}
	return config
}

const maxDevices = 100

// freeDevice is the name of the first device that does not exist.
func freeDevice() string {
	if runtime.GOOS == "darwin" {
		return "utun"
	}
	for i := range maxDevices {
		name := fmt.Sprintf("pilot%d", i)
		if _, err := net.InterfaceByName(name); err != nil {
			return name
		}
	}
	return "pilot0"
}
