package overlay

import "time"

// sleepNoticed is how much more time the boot clock, which counts sleep, has to have
// passed than the clock of the timers, which does not, until the machine has slept.
const sleepNoticed = 2 * time.Second

// slept says whether the machine slept between two instants.
func slept(from, to instant) bool {
	return to.boot-from.boot-to.wall.Sub(from.wall) > sleepNoticed
}

// noticeSleep acts once on a sleep of the machine. NATs have forgotten us, servers and
// peers have given us up, and the network may be another: everything is asked anew at
// once. Timers would notice only as late as if there had been no sleep.
func (l *loop) noticeSleep(now instant) {
	before := l.ran
	l.ran = now
	if before.wall.IsZero() || !slept(before, now) {
		return
	}
	l.log.Info("the machine slept", "for", (now.boot - before.boot - now.wall.Sub(before.wall)).Round(time.Second))
	l.networkChanged(now)
}
