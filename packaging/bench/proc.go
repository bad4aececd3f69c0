package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// ticks is USER_HZ, in which Linux tells CPU times on every port that Go has.
const ticks = 100

// A process is a line of /proc/PID/stat.
type process struct {
	pid, parent int
	kernel      bool
	own, waited float64 // CPU seconds: its own, and of children that it has waited for
}

// parseStat reads the text of /proc/PID/stat.
func parseStat(pid int, stat []byte) (p process, ok bool) {
	end := bytes.LastIndexByte(stat, ')') // the name before it may hold anything
	if end < 0 {
		return p, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 15 {
		return p, false
	}
	n := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v }
	p = process{pid: pid, parent: int(n(1)), own: (n(11) + n(12)) / ticks, waited: (n(13) + n(14)) / ticks}
	p.kernel = pid == 2 || p.parent == 2
	return p, true
}

func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, false
	}
	return parseStat(pid, b)
}

// cpuOf is the CPU seconds that some processes have used.
func cpuOf(pids []int) (sum float64) {
	for _, pid := range pids {
		p, _ := readProcess(pid)
		sum += p.own
	}
	return sum
}

// foreign is the CPU seconds that the machine has spent on processes which are
// neither the kernel's nor below this one. A process that ended counts on with
// the one that waited for it, so that the sum only grows.
func foreign() (sum float64) {
	all := map[int]process{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				all[pid] = p
			}
		}
	}
	for _, p := range all {
		if !p.kernel && !descends(all, p, os.Getpid()) {
			sum += p.own + p.waited
		}
	}
	return sum
}

// descends says whether a process is another or below it.
func descends(all map[int]process, p process, from int) bool {
	for ok := true; ok; p, ok = all[p.parent] {
		if p.pid == from {
			return true
		}
	}
	return false
}

// stolen is the CPU seconds that the hypervisor gave to others.
func stolen() float64 {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	if f := strings.Fields(line); len(f) > 8 {
		v, _ := strconv.ParseFloat(f[8], 64)
		return v / ticks
	}
	return 0
}

// statusKB reads a field of /proc/PID/status that is in kB.
func statusKB(status []byte, field string) int {
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
			return n
		}
	}
	return 0
}

// A machine is where the results come from.
type machine struct {
	cpu, kernel, system, golang, commit string
	cores                               int
}

func readMachine() machine {
	m := machine{cores: runtime.NumCPU(), golang: runtime.Version(), cpu: runtime.GOARCH}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	m.kernel = output("uname", "-sr")
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				m.system = strings.Trim(strings.TrimSpace(v), `"`)
			}
		}
	}
	m.commit = output("git", "describe", "--always", "--dirty")
	return m
}

// output is what a command prints, or nothing.
func output(name string, args ...string) string {
	b, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// lookup finds a program also where only root's PATH leads.
func lookup(name string) string {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	return ""
}
