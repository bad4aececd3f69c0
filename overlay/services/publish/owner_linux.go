package publish

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// owner names the program that listens on a TCP port, as far as this process may
// see it; empty if it cannot tell.
func owner(port uint16) string {
	for _, table := range []struct{ file, any string }{{"/proc/net/tcp6", "[::]"}, {"/proc/net/tcp", "0.0.0.0"}} {
		local, inode := listenerOn(table.file, port)
		if inode == "" {
			continue
		}
		where := fmt.Sprintf("port %d", port)
		if strings.Trim(local, "0") == "" {
			where = fmt.Sprintf("%s:%d", table.any, port)
		}
		if name, pid := holder(inode); pid != "" {
			return fmt.Sprintf("%s (process %s) listens on %s", name, pid, where)
		}
		return "a program listens on " + where
	}
	return ""
}

const listening = "0A"

// listenerOn finds the address, in the kernel's hexadecimal, and the inode of a
// listening socket.
func listenerOn(table string, port uint16) (local, inode string) {
	f, err := os.Open(table)
	if err != nil {
		return "", ""
	}
	defer f.Close()
	suffix := fmt.Sprintf(":%04X", port)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) > 9 && fields[3] == listening && strings.HasSuffix(fields[1], suffix) {
			return strings.TrimSuffix(fields[1], suffix), fields[9]
		}
	}
	return "", ""
}

// holder finds a process that has the socket open.
func holder(inode string) (name, pid string) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is good
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		pid = strings.Split(link, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) {
			return "pilotctl itself", pid
		}
		comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			return "a program", pid
		}
		return strings.TrimSpace(string(comm)), pid
	}
	return "", ""
}
