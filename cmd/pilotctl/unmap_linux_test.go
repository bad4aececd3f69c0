package main

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

// rssFile is how much of files a process has mapped and resident, in KiB.
func rssFile(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Skip("this kernel does not tell RssFile")
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestUnmapStart: less of the program is resident, and it goes on as before.
func TestUnmapStart(t *testing.T) {
	before := rssFile(t)
	if err := unmapStart(); err != nil {
		t.Fatal(err)
	}
	after := rssFile(t)
	t.Logf("RssFile %d KiB, before %d KiB", after, before)
	if after >= before {
		t.Errorf("RssFile is %d KiB, and was %d KiB", after, before)
	}
	d := newDesk(t)
	if _, stderr, status := d.call(t.Context(), "", "status"); status != 0 {
		t.Errorf("exit %d: %s", status, stderr)
	}
}
