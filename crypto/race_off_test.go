//go:build !race

package crypto

// raceEnabled: the race detector allocates, and makes sync.Pool forget.
const raceEnabled = false
