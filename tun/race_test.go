//go:build race

package tun_test

import "testing"

// skipUnderRace skips what counts allocations: the race detector makes its own.
func skipUnderRace(t *testing.T) { t.Skip("allocations are counted without -race") }
