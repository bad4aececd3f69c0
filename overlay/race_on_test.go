//go:build race

package overlay

// raceEnabled: the race detector allocates, makes sync.Pool forget, and is slow:
// long random tests are shorter under it.
const raceEnabled = true
