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
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/tun"
)

const (
	keeperFD  = 3 // the first of exec.Cmd.ExtraFiles
	linkName  = "host0"
	dialTime  = 10 * time.Second
	mercyTime = 2 * time.Second
)

// A keeper is the process inside.
type keeper struct {
	conn *net.UnixConn
	argv []string // of the program

	mu      sync.Mutex
	program *os.Process
	ended   chan struct{} // closed when the program has ended
}

// Inside is the life of the keeper. It returns when the first process is gone, or
// has let go.
func Inside(argv []string) error {
	// What the keyboard sends is for the program, which is in the same group; it must
	// not inherit that it is ignored.
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	unix.CloseOnExec(keeperFD)
	f := os.NewFile(keeperFD, "outside")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("run: only \"pilotctl run\" starts this: %w", err)
	}
	k := &keeper{conn: c.(*net.UnixConn), argv: argv}
	if err := adopt(k.child); err != nil {
		return err
	}
	for {
		var r request
		file, err := receive(k.conn, &r)
		if err != nil {
			break
		}
		file.Close() // there is none
		switch r.Op {
		case opStart:
			go k.start(r) // has the thread that the program's life hangs on
		case opDial:
			go k.answer(r) // may take its time
		default:
			k.answer(r)
		}
	}
	k.end()
	return nil
}

// child is the program's process ID, 0 before it runs.
func (k *keeper) child() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.program == nil {
		return 0
	}
	return k.program.Pid
}

// end ends the program when nobody waits for it any more, and what it left behind.
func (k *keeper) end() {
	k.mu.Lock()
	program, ended := k.program, k.ended
	k.mu.Unlock()
	if program == nil {
		return
	}
	defer endOrphans()
	program.Signal(unix.SIGTERM)
	select {
	case <-ended:
	case <-time.After(mercyTime):
		program.Kill()
		<-ended
	}
}

func (k *keeper) answer(r request) {
	f, err := k.do(r)
	k.respond(r.ID, f, err)
}

func (k *keeper) respond(id int, f *os.File, err error) {
	a := response{ID: id}
	if err != nil {
		a.Error = fail(err)
	}
	send(k.conn, a, f) // nobody hears that it failed
	if f != nil {
		f.Close()
	}
}

// do carries out a request whose answer is at most one descriptor.
func (k *keeper) do(r request) (*os.File, error) {
	switch {
	case r.Op == opEnter && r.Link != nil:
		return enter(*r.Link)
	case r.Op == opDevice && r.Device != nil:
		return tun.OpenFile(r.Device.config())
	case r.Op == opListen:
		return listen(r)
	case r.Op == opDial:
		return dial(r)
	case r.Op == opSignal:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.program == nil {
			return nil, os.ErrProcessDone
		}
		return nil, k.program.Signal(r.Signal)
	}
	return nil, fmt.Errorf("run: no such request: %.20q", r.Op)
}

// enter makes the namespaces what the program is to see.
func enter(l link) (*os.File, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("run: make the mounts private: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	// Nobody else's is at stake in here: low ports and ping are for every user. Where
	// /proc/sys may not be written, as in containers, things stay as they are.
	os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
	os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "%d %d", os.Getgid(), os.Getgid()), 0)
	for at, with := range l.Cover {
		if err := unix.Mount(with, at, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("run: cover %s: %w", at, err)
		}
	}
	return tun.OpenLink(linkName, l.MTU, l.Own)
}

// listen opens a socket for a service of the agent.
func listen(r request) (*os.File, error) {
	at, err := netip.ParseAddrPort(r.Addr)
	if err != nil {
		return nil, err
	}
	kernel := services.Kernel{Addr: at.Addr(), Device: r.Bind}
	if r.Net == "udp" {
		p, err := kernel.ListenPacket(context.Background(), at.Port())
		if err != nil {
			return nil, err
		}
		defer p.Close()
		return p.(*net.UDPConn).File()
	}
	l, err := kernel.Listen(context.Background(), at.Port())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func dial(r request) (*os.File, error) {
	c, err := net.DialTimeout(r.Net, r.Addr, dialTime)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(interface{ File() (*os.File, error) }).File()
}

// start runs the program to its end. The kernel kills the program when this thread
// ends, which it does with the process only.
func (k *keeper) start(r request) {
	runtime.LockOSThread()
	cmd := exec.Command(r.Path)
	cmd.Args = k.argv
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err := renounce()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		k.respond(r.ID, nil, err)
		return
	}
	ended := make(chan struct{})
	k.mu.Lock()
	k.program, k.ended = cmd.Process, ended
	k.mu.Unlock()
	k.respond(r.ID, nil, nil)
	cmd.Wait()
	status := -1
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		status = int(ws)
	}
	close(ended)
	send(k.conn, response{Exit: &status}, nil)
	select {}
}

// renounce keeps capabilities of this thread from what it starts. Root's program is
// root as always.
func renounce() error {
	if os.Geteuid() == 0 {
		return nil
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&h, &data[0]); err != nil {
		return fmt.Errorf("run: read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0 // and with it the ambient set
	if err := unix.Capset(&h, &data[0]); err != nil {
		return fmt.Errorf("run: give up capabilities: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("run: loopback device: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err == nil {
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return fmt.Errorf("run: loopback device: %w", err)
	}
	return nil
}
