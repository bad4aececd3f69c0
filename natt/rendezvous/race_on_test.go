//go:build race

package rendezvous

// raceEnabled says that allocations are not counted as in a plain run.
const raceEnabled = true
