//go:build !linux && !darwin

package services

import (
	"errors"
	"runtime"
)

// bindToDevice fails: without it a source address would prove nothing.
func bindToDevice(int, string) error {
	return errors.New("services: cannot bind a socket to a device on " + runtime.GOOS)
}
