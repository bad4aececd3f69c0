//go:build linux && !amd64

package crashtest

import (
	"fmt"
	"runtime"
	"syscall"
)

func dropCall(int) error {
	return fmt.Errorf("%w: to make its calls fail is not known on %s", errNoTrace, runtime.GOARCH)
}

func answerCall(int, syscall.Errno) error { return dropCall(0) }
