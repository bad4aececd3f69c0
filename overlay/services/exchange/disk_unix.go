//go:build linux || darwin

package exchange

import "golang.org/x/sys/unix"

// free says how many bytes the owner of dir may still write there.
func free(dir string) (int64, bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
