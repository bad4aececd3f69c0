//go:build !linux

package overlay

import "time"

type hostClock struct{}

func (hostClock) Now() time.Time { return time.Now() }

// Boot is the wall clock: it counts sleep, and a step of it makes keys look old
// or drops them, which is safe.
func (hostClock) Boot() time.Duration { return time.Duration(time.Now().UnixNano()) }
