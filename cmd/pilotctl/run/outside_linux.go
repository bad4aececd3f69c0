package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

// keeperRights are what the keeper of a user that is not root needs in there.
var keeperRights = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW}

// A Box is a network of its own with a program in it. Its methods may be called from
// any goroutine.
type Box struct {
	cmd  *exec.Cmd
	conn *net.UnixConn

	mu      sync.Mutex
	next    int
	waiting map[int]chan reply
	gone    bool

	exit chan syscall.WaitStatus // gets one value if the program ends before the keeper
	dead chan struct{}           // closed when the keeper is gone

	device string     // of the overlay
	own    netip.Addr // the agent's
}

type reply struct {
	file *os.File
	err  error
}

// Open makes the namespaces. argv and env are the program's, for Start. An error that
// Is ErrNotAllowed says that this user may not make them here.
func Open(argv, env []string) (*Box, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("run: find this program: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "inside"), os.NewFile(uintptr(pair[1]), "outside")
	defer ours.Close()
	defer theirs.Close()
	cmd, err := contain(func() *exec.Cmd {
		cmd := exec.Command(exe, append([]string{Command, "--"}, argv...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, env
		cmd.ExtraFiles = []*os.File{theirs}
		return cmd
	})
	if err != nil {
		return nil, err
	}
	c, err := net.FileConn(ours)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("run: %w", err)
	}
	b := &Box{cmd: cmd, conn: c.(*net.UnixConn), waiting: map[int]chan reply{}, exit: make(chan syscall.WaitStatus, 1), dead: make(chan struct{})}
	go b.listen()
	return b, nil
}

// contain starts what make returns: as root plainly where that is allowed, and
// otherwise in a user namespace in which the caller is who it is outside.
func contain(make func() *exec.Cmd) (*exec.Cmd, error) {
	const spaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS
	if os.Geteuid() == 0 {
		cmd := make()
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: spaces}
		if err := cmd.Start(); err == nil {
			return cmd, nil
		}
	}
	cmd := make()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  spaces | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
		AmbientCaps: keeperRights,
	}
	err := cmd.Start()
	switch {
	case err == nil:
		return cmd, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUSERS):
		return nil, fmt.Errorf("run: %w: %w", ErrNotAllowed, err)
	}
	return nil, fmt.Errorf("run: start in namespaces: %w", err)
}

// listen hands out what the keeper says.
func (b *Box) listen() {
	defer close(b.dead)
	for {
		var r response
		f, err := receive(b.conn, &r)
		if err != nil {
			break
		}
		if r.Exit != nil {
			b.exit <- syscall.WaitStatus(*r.Exit)
			continue
		}
		b.mu.Lock()
		c := b.waiting[r.ID]
		delete(b.waiting, r.ID)
		b.mu.Unlock()
		a := reply{file: f}
		if r.Error != nil {
			a.err = r.Error.err()
		}
		if c == nil {
			f.Close()
			continue
		}
		c <- a
	}
	b.mu.Lock()
	b.gone = true
	for _, c := range b.waiting {
		c <- reply{err: errGone}
	}
	b.waiting = nil
	b.mu.Unlock()
}

var errGone = fmt.Errorf("run: the process that keeps the namespaces is gone: %w", net.ErrClosed)

// ask waits for the answer to a request.
func (b *Box) ask(ctx context.Context, r request) (*os.File, error) {
	c := make(chan reply, 1)
	b.mu.Lock()
	if b.gone {
		b.mu.Unlock()
		return nil, errGone
	}
	b.next++
	r.ID = b.next
	b.waiting[r.ID] = c
	b.mu.Unlock()
	if err := send(b.conn, r, nil); err != nil {
		return nil, errors.Join(errGone, err)
	}
	select {
	case a := <-c:
		return a.file, a.err
	case <-ctx.Done():
		go func() { (<-c).file.Close() }()
		return nil, ctx.Err()
	}
}

// A View is what the program is to see besides the overlay.
type View struct {
	IPv6  bool              // a default route for it
	MTU   int               // of the way out
	Cover map[string]string // its file -> the file that it sees there
}

// Enter prepares the network and returns the way out of it, which carries one packet
// with each Read and Write.
func (b *Box) Enter(ctx context.Context, v View) (*os.File, error) {
	own := []netip.Prefix{linkAddress}
	if v.IPv6 {
		own = append(own, linkAddress6)
	}
	f, err := b.ask(ctx, request{Op: opEnter, Link: &link{Own: own, MTU: v.MTU, Cover: v.Cover}})
	if err != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) && !errors.Is(err, tun.ErrPermission) {
		return nil, fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	return f, err
}

// OpenDevice makes the overlay's device inside.
func (b *Box) OpenDevice(c tun.Config) (tun.Device, error) {
	b.device, b.own = c.Name, c.Address.Addr()
	f, err := b.ask(context.Background(), request{Op: opDevice, Device: &tunConfig{
		Name: c.Name, Address: c.Address, Route: c.Route, Probe: c.IPv6Probe, MTU: c.MTU,
	}})
	if err != nil {
		return nil, err
	}
	return tun.FromFile(f, c)
}

// Listen is a socket for a service of the agent, as services.Network has it.
func (b *Box) Listen(ctx context.Context, port uint16) (net.Listener, error) {
	f, err := b.ask(ctx, b.listenAt("tcp", port))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return keepAlive{l}, nil
}

// ListenPacket is Listen for UDP.
func (b *Box) ListenPacket(ctx context.Context, port uint16) (net.PacketConn, error) {
	f, err := b.ask(ctx, b.listenAt("udp", port))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}

func (b *Box) listenAt(network string, port uint16) request {
	return request{Op: opListen, Net: network, Addr: netip.AddrPortFrom(b.own, port).String(), Bind: b.device}
}

// DialContext connects from inside; address needs no resolver.
func (b *Box) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	f, err := b.ask(ctx, request{Op: opDial, Net: network, Addr: address})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// keepAlive gives connections what a listener of services.Kernel gives them: rare
// probes, since each wakes the tunnel.
type keepAlive struct{ net.Listener }

func (l keepAlive) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: time.Minute, Count: 10})
	}
	return c, err
}

// Start starts the program, of which path is the file.
func (b *Box) Start(ctx context.Context, path string) error {
	_, err := b.ask(ctx, request{Op: opStart, Path: path})
	return err
}

// Signal sends a signal to the program.
func (b *Box) Signal(s unix.Signal) error {
	_, err := b.ask(context.Background(), request{Op: opSignal, Signal: s})
	return err
}

// Wait waits for the end of the program.
func (b *Box) Wait() (syscall.WaitStatus, error) {
	select {
	case status := <-b.exit:
		return status, nil
	case <-b.dead:
	}
	select {
	case status := <-b.exit: // it was said before
		return status, nil
	default:
		return 0, errGone
	}
}

// Close ends the program, if it runs, and removes the namespaces.
func (b *Box) Close() {
	b.conn.Close()
	b.cmd.Wait()
	<-b.dead
}

// forwarded are the signals that the program gets when the first process gets them.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT, unix.SIGWINCH,
}

// Relay passes signals on until ctx ends. What the keyboard makes the kernel has sent
// to the whole foreground group, with the program in it.
func (b *Box) Relay(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			n, ok := s.(unix.Signal)
			if !ok || fromTerminal(n) && inForeground() {
				continue
			}
			b.Signal(n) // fails if the program has just ended
		}
	}
}

func fromTerminal(s unix.Signal) bool {
	switch s {
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGCONT, unix.SIGWINCH:
		return true
	}
	return false
}

// inForeground says whether the controlling terminal sends our group its signals.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// Forwarded are the signals to give to Relay: those that whoever started us has not
// told us to ignore.
func Forwarded() []os.Signal {
	var list []os.Signal
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	return list
}
