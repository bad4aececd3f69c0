package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapStart gives back the pages of the program's own file. Linux reads and maps them in
// large pieces, so that a start has nearly all of them resident; an agent that waits for
// packets needs a fifth. They stay in the page cache, where the kernel may drop them first,
// and what is used again comes back from there at the next fault. Only mappings that nobody
// writes to are touched.
func unmapStart() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// FROM-TO PERMISSIONS OFFSET DEVICE INODE PATH, see proc(5).
		f := strings.Fields(lines.Text())
		if len(f) < 6 || strings.Join(f[5:], " ") != program || strings.Contains(f[1], "w") {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return err
		}
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("madvise %s: %w", f[0], e)
		}
	}
	return lines.Err()
}
