package overlay

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// A footprint is what a process holds.
type footprint struct {
	heap        uint64 // bytes that are reachable
	goroutines  int
	descriptors int
}

func measureFootprint() (f footprint) {
	debug.FreeOSMemory() // collects; what finalizers let go is collected by the second
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap, f.goroutines = m.HeapAlloc, runtime.NumGoroutine()
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		f.descriptors = len(list)
	}
	return f
}

// TestHostileSoak: a day of two agents and their server, in which they talk and
// fall silent, their NATs forget, the server restarts and strangers and replays come
// in, in virtual time, where 24 hours take a minute: at its end the heap is as large
// as after the first round, within 5 %, and not a goroutine nor a descriptor is
// more. Without PILOT_HOSTILE=1 it lasts two rounds of an hour each.
// "make soak" is the same for the real program, in real time.
func TestHostileSoak(t *testing.T) {
	rounds := 2
	if hostile() {
		rounds = 24
	}
	if raceEnabled {
		t.Skip("the race detector keeps memory of its own")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice := w.agent("alice", natlab.Linux)
		bob, wire := w.agentBehind("bob", natlab.Full)
		w.befriend(alice, bob, "7", "7")
		alice.pathTo("bob", "direct")
		x := newMITM(t, bob, wire)
		wire.ask(func(d wired) []time.Duration {
			x.mu.Lock()
			defer x.mu.Unlock()
			if x.record = append(x.record, d); len(x.record) > 500 {
				x.record = append(x.record[:0], x.record[250:]...)
			}
			return []time.Duration{0}
		})
		var first footprint
		for round := range rounds {
			soakHour(t, w, alice, bob, x)
			now := measureFootprint()
			t.Logf("after hour %d: %d KiB of heap, %d goroutines, %d descriptors", round+1, now.heap>>10, now.goroutines, now.descriptors)
			switch {
			case round == 0:
				first = now
			case now.heap > first.heap+first.heap/20:
				t.Errorf("the heap grew from %d to %d bytes", first.heap, now.heap)
			case now.goroutines > first.goroutines || now.descriptors > first.descriptors:
				t.Errorf("from %d goroutines and %d descriptors to %d and %d", first.goroutines, first.descriptors, now.goroutines, now.descriptors)
			}
		}
	})
}

// soakHour is an hour in which all happens once.
func soakHour(t *testing.T, w *world, alice, bob *agent, x *mitm) {
	t.Helper()
	begin := time.Now()
	talk := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); pass(time.Second) {
			alice.send(bob, 1, 500)
			bob.send(alice, 1, 1300)
		}
	}
	talk(5 * time.Minute)
	bob.router.Flush()
	talk(2 * time.Minute)
	w.stop()
	talk(time.Minute)
	w.startServer()
	talk(time.Minute)
	alice.router.Flush()
	talk(2 * time.Minute)
	x.mu.Lock()
	record := append([]wired(nil), x.record...)
	x.mu.Unlock()
	for _, d := range record {
		x.inject(d.from, append([]byte(nil), d.body...))
		x.inject(stranger, append([]byte(nil), d.body...))
	}
	pass(15 * time.Minute) // sessions, channels and mappings expire
	talk(5 * time.Minute)
	for _, a := range w.agents {
		for a.device.Waiting() > 0 {
			if _, err := a.receive(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if a.Status().Drops["in_loop"] > 0 {
			t.Errorf("%s's loop was too busy: %v", a.cfg.Name, a.Status().Drops)
		}
	}
	alice.pathTo("bob", "direct")
	pass(time.Until(begin.Add(time.Hour)))
}
