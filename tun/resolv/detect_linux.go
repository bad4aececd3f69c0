package resolv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// stubAddress is where systemd-resolved answers programs that ask over DNS.
var stubAddress = netip.MustParseAddr("127.0.0.53")

// paths are the files that say how this system looks up names.
type paths struct {
	resolvConf string
	nsswitch   string
	sockets    string // of UDP, as the kernel lists them
	sbin       []string
	state      string // directory of resolvconf and openresolv
	first      string // the process whose namespaces are the machine's
}

func systemPaths() paths {
	return paths{
		resolvConf: "/etc/resolv.conf", nsswitch: "/etc/nsswitch.conf", sockets: "/proc/net/udp",
		sbin: []string{"/sbin", "/usr/sbin", "/usr/bin", "/usr/local/sbin"}, state: "/run/resolvconf", first: "/proc/1",
	}
}

// askResolved returns nil if programs here ask the systemd-resolved that runs as
// uid. There is one on the bus of many containers and network namespaces whose
// programs ask somebody else, and whose interface numbers mean other interfaces
// to it.
func (p paths) askResolved(uid uint32) error {
	servers, err := p.servers()
	if err != nil {
		return err
	}
	if len(servers) == 0 || slices.ContainsFunc(servers, func(s string) bool { return s != stubAddress.String() }) {
		return fmt.Errorf("%s names %s, not %s: programs do not ask it", p.resolvConf, either(strings.Join(servers, ", "), "no server"), stubAddress)
	}
	if how, ok := p.hostsLine(); ok && !slices.Contains(how, "dns") && !slices.Contains(how, "resolve") {
		return fmt.Errorf("%s looks up hosts by %q only: programs do not ask it", p.nsswitch, strings.Join(how, " "))
	}
	owner, err := p.listener()
	if err != nil {
		return err
	}
	if owner != uid {
		return fmt.Errorf("user %d answers on %s here, but user %d on the bus: it is another one", owner, stubAddress, uid)
	}
	return nil
}

// servers are the name servers of resolv.conf.
func (p paths) servers() ([]string, error) {
	text, err := os.ReadFile(p.resolvConf)
	if err != nil {
		return nil, err
	}
	return parseResolvConf(text).servers, nil
}

// resolvConf is what we ask about in a file like resolv.conf.
type resolvConf struct{ servers, options []string }

// parseResolvConf reads a file like resolv.conf(5), or several in one.
func parseResolvConf(text []byte) (c resolvConf) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[0] == "nameserver":
			c.servers = append(c.servers, f[1])
		case f[0] == "options":
			c.options = append(c.options, f[1:]...)
		}
	}
	return c
}

// hostsLine is how glibc looks up hosts (nsswitch.conf(5)); not ok if the file
// does not say, or there is none, as with musl.
func (p paths) hostsLine() (how []string, ok bool) {
	text, err := os.ReadFile(p.nsswitch)
	if err != nil {
		return nil, false
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if rest, found := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); found {
			return strings.Fields(rest), true
		}
	}
	return nil, false
}

// listener is the user whose socket has port 53 of the stub address in our own
// network namespace.
func (p paths) listener() (uid uint32, err error) {
	text, err := os.ReadFile(p.sockets)
	if err != nil {
		return 0, err
	}
	a := stubAddress.As4()
	slices.Reverse(a[:]) // the kernel prints the number as this machine holds it
	little, big := fmt.Sprintf("%X:0035", a), fmt.Sprintf("%X:0035", stubAddress.As4())
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 8 || f[1] != little && f[1] != big {
			continue
		}
		n, err := strconv.ParseUint(f[7], 10, 32)
		return uint32(n), err
	}
	return 0, errors.New("nobody answers on " + stubAddress.String() + " here")
}

func either(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
