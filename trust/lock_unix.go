//go:build unix

package trust

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockWait is how long a second opener waits for the first to leave.
const lockWait = time.Second

// lockFile takes the lock that one process holds on a state directory. The
// kernel drops it with the process, however that ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("trust: state directory: %w", err)
	}
	const step = 20 * time.Millisecond
	for waited := time.Duration(0); ; waited += step {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("trust: lock %s: %w", path, err)
		}
		if waited >= lockWait {
			f.Close()
			return nil, fmt.Errorf("trust: %s: %w", path, ErrLocked)
		}
		time.Sleep(step)
	}
}
