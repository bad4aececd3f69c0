//go:build !unix

package trust

import (
	"fmt"
	"os"
)

// lockFile leaves the locking to the database, which takes its own.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("trust: state directory: %w", err)
	}
	return f, nil
}
