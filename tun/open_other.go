//go:build !linux && !darwin

package tun

import (
	"errors"
	"fmt"
	"runtime"
)

func open(Config) (Device, error) {
	return nil, fmt.Errorf("tun: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
