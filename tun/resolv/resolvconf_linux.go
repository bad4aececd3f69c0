package resolv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// toolTime bounds one run of the program. It waits up to 10 s for its own lock.
	toolTime = 12 * time.Second
	// maxServers is how many name servers of resolv.conf count (MAXNS of glibc
	// and musl).
	maxServers = 3
	// guardMetric makes the route that stands in for the device's the last choice.
	guardMetric = math.MaxInt32
)

// ErrNoResolvconf means that this machine has neither resolvconf nor openresolv.
var ErrNoResolvconf = errors.New("there is no such program here")

// resolvconf has Debian's resolvconf or openresolv put Server before the name
// servers of resolv.conf. Server refuses all questions but its own, and programs
// then ask the next one.
type resolvconf struct {
	Config
	paths  paths
	server netip.AddrPort // to probe

	told  bool   // we have had a record made
	sound bool   // it has been seen to work
	unfit string // the name servers beside which it does not
}

func newResolvconf(c Config) *resolvconf {
	return &resolvconf{Config: c, paths: systemPaths(), server: netip.AddrPortFrom(c.Server, 53)}
}

// CheckResolvconf returns ErrNoResolvconf if Mode Resolvconf cannot work here.
func CheckResolvconf() error {
	_, err := systemPaths().tool()
	return err
}

// RemoveResolvconf removes what a killed agent with this tag left with
// resolvconf or openresolv; route is Config.Route. It is no error if there is
// nothing.
func RemoveResolvconf(tag string, route netip.Prefix) error {
	err := newResolvconf(Config{Tag: tag, Route: route}).undo(context.Background())
	if err != nil {
		return fmt.Errorf("resolv: %w", err)
	}
	return nil
}

func (r *resolvconf) mode() Mode               { return Resolvconf }
func (r *resolvconf) check()                   { r.sound = false }
func (r *resolvconf) changed() <-chan struct{} { return nil }
func (r *resolvconf) close()                   {}

// record is the name under which our server is registered. Both programs sort
// "lo.PROGRAM" first, as that of a name server of this machine.
func (r *resolvconf) record() string {
	tag := r.Tag
	if len(tag) > 16 {
		tag = tag[:16]
	}
	return "lo.pilot-" + tag
}

// set does nothing if all stands as it did: the names are asked for one by one.
func (r *resolvconf) set(ctx context.Context, _ []Entry) error {
	if r.sound {
		return nil
	}
	err := r.apply(ctx)
	if err != nil && r.told && ctx.Err() == nil { // at the end undo has its turn
		err = errors.Join(err, r.undo(ctx))
	}
	if err != nil {
		return fmt.Errorf("resolvconf: %w", err)
	}
	r.sound = true
	return nil
}

func (r *resolvconf) apply(ctx context.Context) error {
	tool, err := r.paths.tool()
	if err != nil {
		return err
	}
	conf, err := r.paths.fitsResolvconf()
	if err != nil {
		return err
	}
	listed, err := r.run(tool, "", "-l")
	if err != nil && len(listed) > 0 { // openresolv fails if it has nothing to list
		return err
	}
	before, all := r.others(conf), r.others(append(conf, parseResolvConf(listed).servers...))
	switch {
	case len(before) == 0:
		return fmt.Errorf("%s names no other server, and programs need one", r.paths.resolvConf)
	case len(all) >= maxServers:
		return fmt.Errorf("it has %d name servers already, and programs ask only the first %d", len(all), maxServers)
	case isLoopback(before[0]):
		return fmt.Errorf("programs ask a resolver of this machine (%s), which would pass on all questions to ours", before[0])
	}
	if err := r.answers(ctx); err != nil {
		return err
	}
	if r.told && conf[0] == r.Server.String() {
		return nil
	}
	state := strings.Join(all, " ")
	if state == r.unfit {
		return r.notFirst(nil)
	}
	if err := r.guard(); err != nil {
		return err
	}
	content := "nameserver " + r.Server.String() + "\n"
	if r.Search {
		content += "search " + r.Domain + "\n"
	}
	r.told = true
	_, toolErr := r.run(tool, content, "-a", r.record())
	conf, err = r.paths.servers()
	if err == nil && (len(conf) < 2 || conf[0] != r.Server.String()) {
		r.unfit = state
		err = r.notFirst(toolErr)
	}
	return err
}

func (r *resolvconf) notFirst(err error) error {
	if err != nil {
		return fmt.Errorf("%s does not begin with our server: %w", r.paths.resolvConf, err)
	}
	return fmt.Errorf("another name server stays before ours in %s", r.paths.resolvConf)
}

// others are the distinct servers that are not ours.
func (r *resolvconf) others(servers []string) (list []string) {
	for _, s := range servers {
		if s != r.Server.String() && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func isLoopback(server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && (a.IsLoopback() || a.IsUnspecified())
}

// answers waits for our resolver, which may start a moment later than we do.
func (r *resolvconf) answers(ctx context.Context) (err error) {
	for range probes {
		if err = probe(ctx, r.server, r.Probe, r.Server, probeTime); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// undo removes the record, also that of an earlier start. When it fails it can
// be called again.
func (r *resolvconf) undo(context.Context) error {
	r.sound = false
	tool, err := r.paths.tool()
	if err != nil {
		return nil // nobody who could have a record
	}
	if !r.told {
		// The exit status says nothing: openresolv fails if it has none.
		list, _ := r.run(tool, "", "-i")
		if !slices.Contains(strings.Fields(string(list)), r.record()) {
			return nil
		}
	}
	_, err = r.run(tool, "", "-d", r.record())
	// Judged by what is there: the programs that it tells in turn may fail.
	if conf, readErr := r.paths.servers(); err != nil && (readErr != nil || slices.Contains(conf, r.Server.String())) {
		return err
	}
	r.told = false
	return r.unguard()
}

// run runs the program and returns what it prints. It is not ended with our
// context: half done it would leave resolv.conf as it should not be.
func (r *resolvconf) run(tool, input string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(input)
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	// A script has children; and a Control-C at our terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.Join(strings.Fields(says.String()), " "))
	}
	return out.Bytes(), err
}

// guard makes the prefix of Server unreachable where the device has no route to
// it, when this process has been killed: programs get the error at once, and ask
// the next server. By a default route they would wait for an answer.
func (r *resolvconf) guard() error {
	if !r.Route.IsValid() {
		return nil
	}
	err := netlink.RouteAdd(guardRoute(r.Route))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route for the time after this process: %w", err)
	}
	return nil
}

func (r *resolvconf) unguard() error {
	if !r.Route.IsValid() {
		return nil
	}
	err := netlink.RouteDel(guardRoute(r.Route))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the route for the time after this process: %w", err)
	}
	return nil
}

func guardRoute(p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)},
		Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Priority: guardMetric,
	}
}

// tool is Debian's resolvconf or openresolv. That of systemd-resolved, another
// name of resolvectl, is neither.
func (p paths) tool() (string, error) {
	for _, dir := range p.sbin {
		path := filepath.Join(dir, "resolvconf")
		target, err := filepath.EvalSymlinks(path)
		if err != nil || filepath.Base(target) == "resolvectl" {
			continue
		}
		if info, err := os.Stat(target); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", ErrNoResolvconf
}

// fitsResolvconf returns the servers of resolv.conf if the program keeps that
// file for the programs of this network namespace, and these ask its servers in
// order.
func (p paths) fitsResolvconf() ([]string, error) {
	text, err := os.ReadFile(p.resolvConf)
	if err != nil {
		return nil, err
	}
	if target, err := filepath.EvalSymlinks(p.resolvConf); err != nil || filepath.Dir(target) != p.state && !bytes.HasPrefix(text, []byte("# Generated by resolvconf")) {
		return nil, fmt.Errorf("%s is not kept by it", p.resolvConf)
	}
	c := parseResolvConf(text)
	for _, o := range []string{"rotate", "use-vc"} {
		if slices.Contains(c.options, o) {
			return nil, fmt.Errorf("%s has the option %s, with which programs do not ask its first server first", p.resolvConf, o)
		}
	}
	if how, ok := p.hostsLine(); ok && !slices.Contains(how, "dns") {
		return nil, fmt.Errorf("%s looks up hosts by %q only", p.nsswitch, strings.Join(how, " "))
	}
	return c.servers, p.shared()
}

// shared returns an error if the state of the program is that of the machine
// outside our network namespace, whose programs do not reach our resolver.
func (p paths) shared() error {
	mine, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return err
	}
	first, err := os.Stat(p.first + "/ns/net")
	if err != nil {
		return fmt.Errorf("cannot tell whether this is the machine's network namespace: %w", err)
	}
	if os.SameFile(mine, first) {
		return nil
	}
	for _, path := range []string{p.state, p.resolvConf} {
		here, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		there, otherErr := os.Stat(p.first + "/root" + path)
		switch {
		case err != nil:
			return err
		case otherErr == nil && os.SameFile(here, there):
			return fmt.Errorf("%s belongs to another network namespace too", path)
		case otherErr != nil && !errors.Is(otherErr, fs.ErrNotExist):
			return otherErr
		}
	}
	return nil
}
