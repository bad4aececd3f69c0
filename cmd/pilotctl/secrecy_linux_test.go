package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A daemon leaves no core dump, whatever its limits were.
func TestKeepSecret(t *testing.T) {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(was), 0, 0, 0)
		unix.Setrlimit(unix.RLIMIT_CORE, &limit)
	})
	raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &raised); err != nil {
		t.Fatal(err)
	}
	if err := keepSecret(); err != nil {
		t.Fatal(err)
	}
	now, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || now != 0 {
		t.Errorf("dumpable is %d, %v", now, err)
	}
	var after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &after); err != nil || after.Cur != 0 || after.Max != limit.Max {
		t.Errorf("the limit is %+v, %v; want 0 of %d", after, err, limit.Max)
	}
}
