//go:build !linux

package resolv

import (
	"errors"
	"net/netip"
	"runtime"
)

// ErrNoResolvconf means that this machine has neither resolvconf nor openresolv.
var ErrNoResolvconf = errors.New("there is no such program here")

// CheckResolvconf returns ErrNoResolvconf: this is a mode for Linux.
func CheckResolvconf() error { return ErrNoResolvconf }

// RemoveResolvconf does nothing: this is a mode for Linux.
func RemoveResolvconf(string, netip.Prefix) error { return nil }

// systemMeans are the means of this system that are better than the hosts file.
func systemMeans(c Config) []means {
	if runtime.GOOS == "darwin" && c.Mode == Auto {
		return []means{&files{Config: c, dir: DefaultResolverDir}}
	}
	return nil
}

func systemLeft(Config) []means { return nil }
