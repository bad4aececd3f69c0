package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/ipam"
)

const toolTime = 3 * time.Second // for a program that lists the firewall

func lookAtFile(path string) fileFact {
	f := fileFact{path: path}
	info, err := os.Lstat(path)
	if err != nil {
		f.err = err
		return f
	}
	f.mode = info.Mode()
	uid := -1
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) == nil {
		uid = int(stat.Uid)
	}
	f.mine = uid == os.Geteuid() || uid == 0
	return f
}

// examineTUN opens the driver, which makes no device yet.
func examineTUN() (driver error, netAdmin bool) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err, hasNetAdmin()
}

// hasNetAdmin reads the capabilities of this process.
func hasNetAdmin() bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return os.Geteuid() == 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			return err == nil && n>>unix.CAP_NET_ADMIN&1 == 1
		}
	}
	return false
}

// wayTo is the device through which the kernel sends packets to a; empty if it
// has none.
func wayTo(a netip.Addr) string {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}

// examineIPv6 looks at the switches of the kernel and for others in our prefix.
func examineIPv6(own string) (f ipv6Fact) {
	const switches = "/proc/sys/net/ipv6/conf/"
	if _, err := os.Stat("/proc/sys/net/ipv4"); err != nil {
		f.unseen = errors.New("there is no /proc here")
	}
	_, err := os.Stat(switches)
	f.kernel = err == nil
	for _, name := range []string{"all", "default", own} {
		if name == "" {
			continue
		}
		path := filepath.Join(switches, name, "disable_ipv6")
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) != "0" {
			f.off = append(f.off, "net.ipv6.conf."+name+".disable_ipv6")
		}
	}
	f.writable = unix.Access(switches+"default/disable_ipv6", unix.W_OK) == nil
	f.rivals = append(rivalAddresses(own), rivalRoutes(own)...)
	return f
}

// rivalRoutes are the routes into our prefix that lead elsewhere.
func rivalRoutes(own string) (list []string) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		return nil
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		dst, err := netip.ParsePrefix(r.Dst.String())
		if err != nil || dst.Bits() < ipam.Prefix().Bits() || !ipam.Prefix().Overlaps(dst) {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err == nil && link.Attrs().Name != own {
			list = append(list, fmt.Sprintf("%s has a route to %s", link.Attrs().Name, dst))
		}
	}
	return list
}

// hostsLine is how glibc looks up hosts (nsswitch.conf(5)); nil if nothing says.
func hostsLine() []string {
	text, err := os.ReadFile("/etc/nsswitch.conf")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

// examineFirewall has the rules listed by the programs that are there for that.
// Those of old iptables are not among the rules of nftables.
func examineFirewall(ctx context.Context) firewallFact {
	if os.Geteuid() != 0 {
		return firewallFact{unseen: errors.New("only root may see the rules")}
	}
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	var f firewallFact
	seen := false
	old, _ := os.ReadFile("/proc/net/ip6_tables_names")
	for _, tool := range []struct {
		name  string
		args  []string
		parse func([]byte) ([]hook, error)
		used  bool
	}{
		{"nft", []string{"-j", "list", "ruleset"}, parseNFT, true},
		{"ip6tables-legacy-save", nil, parseIPTables, slices.Contains(strings.Fields(string(old)), "filter")},
	} {
		if !tool.used {
			continue
		}
		hooks, err := listRules(ctx, tool.parse, tool.name, tool.args...)
		if err != nil {
			f.unseen = err
			continue
		}
		seen = true
		f.hooks = append(f.hooks, hooks...)
	}
	if !seen && f.unseen == nil {
		f.unseen = errors.New("no program here lists the rules")
	}
	return f
}

func listRules(ctx context.Context, parse func([]byte) ([]hook, error), name string, args ...string) ([]hook, error) {
	path := tool(name)
	if path == "" {
		return nil, fmt.Errorf("%s, which lists the rules, is not installed", name)
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		first, _ := bufio.NewReader(&errs).ReadString('\n')
		return nil, fmt.Errorf("%s: %w: %.200s", name, err, strings.TrimSpace(first))
	}
	hooks, err := parse(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return hooks, nil
}

// tool finds a program of the system where users' PATHs often do not lead.
func tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o111 != 0 && info.Mode().Type() == fs.FileMode(0) {
			return path
		}
	}
	return ""
}
