package overlay

import (
	"time"

	"golang.org/x/sys/unix"
)

type hostClock struct{}

func (hostClock) Now() time.Time { return time.Now() }

// Boot reads CLOCK_BOOTTIME, since Go's monotonic clock stops in sleep and keys
// would look fresh after waking up.
func (hostClock) Boot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
