package overlay

import (
	"bufio"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listening reads the kernel's tables of TCP listeners and bound UDP sockets.
func listening() []string {
	var list []string
	for _, t := range []struct{ path, name, state string }{
		{"/proc/net/tcp6", "tcp", "0A"}, {"/proc/net/udp6", "udp", "07"},
	} {
		f, err := os.Open(t.path)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) < 4 || fields[3] != t.state {
				continue
			}
			a, ok := procAddr(fields[1])
			if ok && !a.Addr().IsLoopback() {
				list = append(list, t.name+" "+joinHostPort(a))
			}
		}
		f.Close()
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// procAddr reads ADDRESS:PORT as /proc/net shows it: four words in host order.
func procAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < 16; i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), uint16(p)), true
}
