//go:build race

package trust

// raceEnabled says that this is built with the race detector, which slows it down.
const raceEnabled = true
