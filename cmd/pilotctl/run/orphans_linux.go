package run

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of what the program leaves behind, wherever in
// its tree. known is the program, 0 before it runs: who started it waits for it.
func adopt(known func() int) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("run: adopt orphans: %w", err)
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	go func() {
		for range died {
			program := known()
			for _, pid := range descendants(os.Getpid(), false) {
				if program != 0 && pid != program {
					unix.Wait4(pid, nil, unix.WNOHANG, nil) // does nothing to one that lives
				}
			}
		}
	}()
	return nil
}

// orphanTime is how long orphans may take to end by themselves.
const orphanTime = 500 * time.Millisecond

// endOrphans ends what the program left behind, whose network is about to go. What runs
// as another user than this one cannot be ended.
func endOrphans() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	sig := unix.SIGTERM
	told := map[int]bool{}
	for end := time.Now().Add(2 * orphanTime); time.Now().Before(end); <-tick.C {
		if time.Until(end) < orphanTime && sig != unix.SIGKILL {
			sig, told = unix.SIGKILL, map[int]bool{}
		}
		all := descendants(os.Getpid(), true)
		for _, pid := range all {
			if !told[pid] {
				told[pid] = true
				unix.Kill(pid, sig)
			}
		}
		if len(all) == 0 {
			return
		}
	}
}

// descendants are the processes below one, or its children only. Without /proc there
// are none. Those that are dead and not yet waited for count as children, not below.
func descendants(of int, all bool) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	children := map[int][]int{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		// "PID (NAME) STATE PPID ...", and NAME may hold anything (proc_pid_stat(5)).
		b, _ := os.ReadFile("/proc/" + name + "/stat")
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) < 2 || all && fields[0][0] == 'Z' {
			continue
		}
		if parent, err := strconv.Atoi(string(fields[1])); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	found := children[of]
	for i := 0; all && i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}
