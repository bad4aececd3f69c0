package overlay

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

type hostClock struct{}

func (hostClock) Now() time.Time { return time.Now() }

// Boot reads CLOCK_BOOTTIME, since Go's monotonic clock stops in sleep and keys
// would look fresh after waking up. The packet goroutines ask once a batch, so
// the call is a raw one: any other wakes the runtime's monitor thread, which then
// runs for a while and costs more than the packet does.
func (hostClock) Boot() time.Duration {
	var ts unix.Timespec
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
