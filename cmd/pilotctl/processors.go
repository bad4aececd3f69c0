package main

import (
	"context"
	"os"
	"runtime"
	"syscall"
	"time"
)

// A width decides on how many CPUs the Go scheduler of a daemon runs at once.
//
// The packet path is two goroutines that wait for the kernel nearly always. With
// several CPUs to run on, each packet that comes while one of them works wakes a
// second thread on another CPU, if only to find nothing to do, and acknowledgements
// make the two wake each other in turn. As long as one CPU has time for both, one
// is better: measured on two CPUs, a stream costs a fifth less, because who is
// awake finds more that waits. So a daemon that is busy, but not too busy for it,
// runs on one. An idle one does not: there, a slow system call of a service would
// make packets wait.
type width struct {
	narrow bool
	hold   int // windows in which it stays as it is
	calm   int // windows without load, one after the other
}

const (
	widthWindow = 500 * time.Millisecond
	// Shares of one CPU that the process used in a window.
	narrowAbove = 0.2
	narrowBelow = 0.8
	wideAbove   = 0.9
	calmBelow   = 0.1
	// Windows.
	wideHold  = 20
	calmUntil = 4
)

// next takes the load of the last window and says whether to run on one CPU now.
func (w *width) next(load float64) bool {
	switch {
	case w.hold > 0:
		w.hold--
	case !w.narrow:
		w.narrow = load >= narrowAbove && load <= narrowBelow
		w.calm = 0
	case load > wideAbove:
		w.narrow, w.hold = false, wideHold
	case load >= calmBelow:
		w.calm = 0
	default:
		w.calm++
		w.narrow = w.calm < calmUntil
	}
	return w.narrow
}

// fitProcessors keeps the width of this process until ctx ends. Where the user
// has set GOMAXPROCS, or there is one CPU, nothing is to be decided.
func fitProcessors(ctx context.Context) {
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	tick := time.NewTicker(widthWindow)
	defer tick.Stop()
	defer runtime.SetDefaultGOMAXPROCS()
	var w width
	last, used := time.Now(), processTime()
	for narrow := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, u := time.Now(), processTime()
		n := w.next((u - used).Seconds() / now.Sub(last).Seconds())
		last, used = now, u
		if n == narrow {
			continue
		}
		if narrow = n; narrow {
			runtime.GOMAXPROCS(1)
		} else {
			runtime.SetDefaultGOMAXPROCS()
		}
	}
}

// processTime is the CPU time that this process has used.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
