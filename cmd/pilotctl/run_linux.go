package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/cmd/pilotctl/run"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/resolv"
	"github.com/pilotnet/pilot/tun/userspace/forward"
)

const (
	hostResolver = "/etc/resolv.conf"
	hostNames    = "/etc/hosts"
	boxDevice    = "pilot0"
	graceTime    = 2 * time.Second
	exitNoStart  = 126 // of a shell: the program is there and cannot be started
	exitNoSuch   = 127 // of a shell: there is no such program
)

// A boxed is one call of run.
type boxed struct {
	*program
	c       *cli.Context
	at      places
	usual   string // the configuration that an ephemeral agent begins with; else empty
	box     *run.Box
	view    boxView
	logger  *slog.Logger
	node    node
	token   string     // of an invitation to use; may be empty
	invited chan error // gets what came of it
}

// runProgram runs a program in a network of its own, and ends this process as the
// program ended.
func (p *program) runProgram(c *cli.Context, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return notStarted(argv[0], err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return systemError("find the program", err)
	}
	b := &boxed{program: p, c: c, invited: make(chan error, 1)}
	if err := b.place(); err != nil {
		return err
	}
	// The keyboard's interrupt is the program's, whatever it makes of it.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, run.Forwarded()...)
	status, err := b.run(context.WithoutCancel(c.Context), argv, path, signals)
	if err != nil {
		return err
	}
	endAs(status)
	return nil
}

// refuseRunning refuses an agent that runs already: its device is in another
// network, and there can be no second node.
func refuseRunning(ctx context.Context, at places) error {
	s, err := api.NewClient(at.socket).Status(ctx)
	if err == nil {
		return overlay.Errorf(overlay.CodeConflict, "%s is up already, and an agent has one network only", s.Name).
			WithHint("give the program an agent of its own: pilotctl run --ephemeral -- COMMAND, or --state-dir DIR to keep it; or pilotctl down first")
	}
	if api.AsError(err).Code != overlay.CodeNotRunning {
		return err
	}
	return nil
}

func notStarted(name string, err error) error {
	status := exitNoStart
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		status = exitNoSuch
	}
	return &statusError{status: status, err: overlay.Errorf(overlay.CodeNotFound, "%.60s cannot be started: %v", name, err).
		WithHint("give the path of a program, or sh -c COMMAND")}
}

func (b *boxed) run(ctx context.Context, argv []string, path string, signals <-chan os.Signal) (syscall.WaitStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Namespaces first: where they are not to be had, nothing was done.
	var err error
	if b.box, err = run.Open(argv, b.environment()); err != nil {
		return 0, boxError(err)
	}
	defer b.box.Close()
	secret := keepSecret() // after Open: the kernel lets who hides its memory set up no user namespace
	if b.usual != "" {
		if err := makeMemory(b.at, b.usual); err != nil {
			return 0, err
		}
		defer os.RemoveAll(b.at.state)
	}
	if err := b.settle(signals); err != nil {
		return 0, err
	}
	log, err := b.openLog()
	if err != nil {
		return 0, err
	}
	defer log()
	if secret != nil {
		b.logger.Warn("a core dump of this process would hold keys", "error", secret)
	}
	health, err := b.listenHealth(b.c)
	if err != nil {
		return 0, err
	}
	if health != nil {
		defer health.Close()
	}
	sockets, err := api.Listen(b.at.socket)
	if err != nil {
		return 0, err
	}
	defer sockets.Close()
	if err := b.view.make(b.at, b.c.Bool("dns-search")); err != nil {
		return 0, err
	}
	defer b.view.remove()
	link, err := b.box.Enter(ctx, run.View{IPv6: hasIPv6(), MTU: forward.MaxMTU, Cover: b.view.cover()})
	if err != nil {
		return 0, boxError(err)
	}
	served, err := b.open(link)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 2)
	for _, f := range served.parts(b, sockets, b.extras(health)) {
		go func() { ended <- f(ctx) }()
	}
	defer func() { cancel(); <-ended; <-ended }()
	return b.play(ctx, path, signals, ended)
}

// play runs the program once the agent is of use, to its end.
func (b *boxed) play(ctx context.Context, path string, signals <-chan os.Signal, ended chan error) (syscall.WaitStatus, error) {
	if err := b.await(ctx, signals, ended); err != nil {
		return 0, err
	}
	if err := b.box.Start(ctx, path); err != nil {
		return 0, notStarted(path, err)
	}
	go b.box.Relay(ctx, signals)
	stopped := make(chan error, 1)
	go func() { // "pilotctl down" ends the program too
		select {
		case err := <-ended:
			ended <- err
			b.box.Signal(unix.SIGTERM)
			stopped <- err
		case <-ctx.Done():
		}
	}()
	type outcome struct {
		status syscall.WaitStatus
		err    error
	}
	over := make(chan outcome, 1)
	go func() {
		status, err := b.box.Wait()
		over <- outcome{status, err}
	}()
	select {
	case o := <-over:
		return o.status, lost(o.err)
	case <-stopped:
	}
	select {
	case o := <-over:
		return o.status, lost(o.err)
	case <-time.After(graceTime):
		return 0, overlay.Errorf(overlay.CodeConflict, "the agent was stopped, and the program did not end by itself; it is killed")
	}
}

// lost is an error if nobody can tell any more how the program ended.
func lost(err error) error {
	if err == nil {
		return nil
	}
	return overlay.Errorf(overlay.CodeInternal, "%v", err).WithHint("was it killed? dmesg tells of a machine without memory")
}

// openLog makes the logger: the agent's words are not the program's.
func (b *boxed) openLog() (done func(), err error) {
	if b.c.Bool("verbose") {
		b.logger = b.program.logger(true)
		return func() {}, nil
	}
	f, err := openLog(filepath.Join(b.at.state, logFile))
	if err != nil {
		return nil, err
	}
	b.logger = slog.New(slog.NewTextHandler(f, nil))
	return func() { f.Close() }, nil
}

// A served is what runs beside the program.
type served struct {
	forwarder *forward.Forwarder
	set       settings
}

// open makes the node, with its device inside, and the way out.
func (b *boxed) open(link *os.File) (*served, error) {
	names := &run.Names{
		Zones: []string{dns.Domain, dns.ReverseDomain},
		File:  hostResolver,
		Overlay: func(ctx context.Context) (net.Conn, error) {
			return b.box.DialContext(ctx, "udp", netip.AddrPortFrom(dns.Address(), 53).String())
		},
	}
	forwarder, err := forward.New(forward.Config{Link: link, MTU: forward.MaxMTU, NameServer: run.NameServer, Names: names.Answer, Logger: b.logger})
	if err != nil {
		link.Close()
		return nil, err
	}
	n, set, err := b.openNode()
	if err != nil {
		link.Close()
		return nil, boxError(err)
	}
	b.node = n
	return &served{forwarder, set}, nil
}

func (b *boxed) openNode() (node, settings, error) {
	set, err := b.settings(b.c, b.at)
	if err != nil {
		return nil, set, err
	}
	set.tun, set.dns = boxDevice, string(resolv.HostFile)
	if b.usual != "" && !b.c.IsSet("port") {
		set.port = 0 // what is configured is for the agent that stays
	}
	id, err := readIdentity(b.at)
	if err != nil {
		return nil, set, err
	}
	config := nodeConfig(b.c, b.at, set, id, b.logger)
	config.HostsFile = b.view.hosts
	config.OpenDevice, config.Network = b.box.OpenDevice, b.box
	if config.Proxies, err = b.proxies(set.caFile); err != nil {
		return nil, set, err
	}
	n, err := b.newNode(config)
	return n, set, err
}

// parts are the two that run until the program has ended.
func (s *served) parts(b *boxed, sockets *api.Sockets, more extras) []func(context.Context) error {
	return []func(context.Context) error{
		s.forwarder.Run,
		func(ctx context.Context) error {
			return serve(ctx, b.node, sockets, mounts(s.set.services), b.logger, more)
		},
	}
}

// await waits until a server knows the agent and an invitation is granted, or for so
// long that the program is to start without.
func (b *boxed) await(ctx context.Context, signals <-chan os.Signal, ended chan error) error {
	late := time.NewTimer(b.c.Duration("wait"))
	defer late.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var known patience
	missing := b.token != ""
	for {
		s := b.node.Status()
		if (ready(s) || len(s.Servers) == 0) && known.names(s) && !missing {
			return nil
		}
		select {
		case s := <-signals:
			if ends(s) {
				return endedBy(s)
			}
		case err := <-b.invited:
			if err != nil {
				return err
			}
			missing = false
		case err := <-ended:
			ended <- err // for whoever counts them
			if err == nil {
				err = errors.New("it was told to")
			}
			return overlay.Errorf(overlay.CodeInternal, "the agent ended: %v", err)
		case <-late.C:
			lacks := "no server knows " + s.Name + " yet"
			if ready(s) && missing {
				lacks = "the agent that invites has not granted anything yet"
			}
			b.tell("pilotctl: %s; starting the program all the same; the agent's log: %s", lacks, filepath.Join(b.at.state, logFile))
			return nil
		case <-tick.C:
		}
	}
}

// endAs ends this process as the program ended, so that a shell sees no difference.
func endAs(status syscall.WaitStatus) {
	if !status.Signaled() {
		os.Exit(status.ExitStatus())
	}
	switch s := status.Signal(); s {
	case unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGKILL, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM:
		signal.Reset(s)
		unix.Kill(os.Getpid(), s)
		<-time.After(time.Second) // it is on its way
	}
	os.Exit(128 + int(status.Signal())) // others would have us write a core, or a trace
}

// hasIPv6 says whether the host has a way to IPv6 addresses. Connecting a UDP socket
// sends nothing.
func hasIPv6() bool {
	c, err := net.Dial("udp6", netip.AddrPortFrom(tun.WellKnownProbe(), 53).String())
	if err != nil {
		return false
	}
	defer c.Close()
	// An agent on the host may have put a route there, for browsers.
	own, ok := c.LocalAddr().(*net.UDPAddr)
	return ok && !ipam.Prefix().Contains(own.AddrPort().Addr())
}

// A boxView is the files of the host that the program sees others in the place of.
type boxView struct{ dir, hosts, resolver string }

// make writes them from the host's. The hosts file has a second name: the node then
// changes it in place, and does not put a new one there that the program would not
// see.
func (v *boxView) make(at places, search bool) error {
	v.dir = filepath.Join(at.state, "run")
	v.hosts, v.resolver = filepath.Join(v.dir, "hosts"), filepath.Join(v.dir, "resolv.conf")
	v.remove() // what a killed one left
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return systemError("make what the program is to see", err)
	}
	domain := ""
	if search {
		domain = dns.Domain
	}
	host, _ := os.ReadFile(hostResolver) // what is not there is empty
	names, _ := os.ReadFile(hostNames)
	err := errors.Join(writeFor(v.resolver, run.ResolvConf(host, domain)), writeFor(v.hosts, names))
	if err == nil {
		err = os.Link(v.hosts, v.hosts+".seen")
	}
	if err != nil {
		v.remove()
		return systemError("make what the program is to see", err)
	}
	return nil
}

// writeFor writes a file that every user inside may read.
func writeFor(path string, text []byte) error {
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

func (v *boxView) remove() { os.RemoveAll(v.dir) }

func (v *boxView) cover() map[string]string {
	return map[string]string{hostResolver: v.resolver, hostNames: v.hosts}
}

// boxError says what to do where namespaces or the device are not to be had.
func boxError(err error) error {
	switch {
	case errors.Is(err, run.ErrNotAllowed):
		return overlay.Errorf(overlay.CodeDenied, "%v", err).WithHint("%s", namespaceHint(os.ReadFile))
	case errors.Is(err, tun.ErrPermission):
		if h := new(tun.HelpError); errors.As(err, &h) {
			err = h.Err
		}
		return overlay.Errorf(overlay.CodeDenied, "%v", err).
			WithHint("run needs /dev/net/tun for this user: sudo chmod 666 /dev/net/tun, as most systems have it; or pilotctl up --tun userspace")
	}
	return err
}

// namespaceHint finds the setting that keeps user namespaces away.
func namespaceHint(read func(string) ([]byte, error)) string {
	value := func(name string) string {
		b, _ := read("/proc/sys/" + name)
		return string(bytes.TrimSpace(b))
	}
	const other = "; or without them: pilotctl up --tun userspace, and the proxy"
	switch {
	case value("kernel/unprivileged_userns_clone") == "0":
		return "sudo sysctl kernel.unprivileged_userns_clone=1" + other
	case value("user/max_user_namespaces") == "0":
		return "sudo sysctl user.max_user_namespaces=10000" + other
	case value("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return fmt.Sprintf("AppArmor keeps them from programs without a profile (Ubuntu 23.10 and later): sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, "+
			"or give pilotctl a profile with the rule userns%s", other)
	}
	return "a container needs --security-opt seccomp=unconfined for them, or a profile that allows clone and unshare with CLONE_NEWUSER" + other
}
