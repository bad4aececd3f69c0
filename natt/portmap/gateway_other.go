//go:build !linux

package portmap

import (
	"errors"
	"net/netip"
)

var errUnsupported = errors.New("portmap: finding the default gateway is not supported on this system")

// DefaultGateway is not supported on this system; give Config.Gateway.
func DefaultGateway() (gateway, self netip.Addr, err error) { return gateway, self, errUnsupported }

// DefaultGateway6 is not supported on this system; give Config.Gateway6.
func DefaultGateway6() (gateway, self netip.Addr, err error) { return gateway, self, errUnsupported }
