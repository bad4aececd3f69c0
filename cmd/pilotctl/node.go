package main

import (
	"fmt"
	"log/slog"
	"net"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
)

// newNode opens the node that the settings describe.
func (p *program) newNode(c *cli.Context, at places, set settings, id ipam.Identity, logger *slog.Logger) (node, error) {
	config := overlay.Config{
		StateDir:   at.state,
		Name:       either(set.name, hostName()),
		Identity:   id,
		Servers:    set.servers,
		DeviceName: set.tun,
		Port:       set.port,
		Takeover:   c.Bool("takeover"),
		Version:    release,
		Logger:     logger,
	}
	if set.dns == "hosts" {
		config.HostsFile = c.String("hosts-file")
	}
	if set.tun == "auto" {
		config.DeviceName = freeDevice()
	}
	n, err := overlay.New(config)
	if err != nil {
		return nil, err
	}
	return n, nil
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
