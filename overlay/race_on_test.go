//go:build race

package overlay

// raceEnabled: the race detector allocates, and makes sync.Pool forget.
const raceEnabled = true
