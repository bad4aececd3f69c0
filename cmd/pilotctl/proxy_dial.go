package main

import (
	"context"
	"net"

	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/proxy"
)

// toPeers connects to services of peers: over the host's network, where the
// overlay is part of it, else through the agent's proxy.
func (p *program) toPeers(client *api.Client) func(ctx context.Context, network, address string) (net.Conn, error) {
	if p.dial != nil {
		return p.dial
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		if s, err := client.Status(ctx); err == nil && s.Device.Userspace && s.Device.Proxy != "" {
			return proxy.Dial(ctx, s.Device.Proxy, address)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}
