package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// links are the offloads of all four ends of the two veth pairs.
var links = map[string]string{
	"default": "",
	"nic":     "tso off tx-udp-segmentation off gso on gro on",
	"nouso":   "tso off gso off gro off tx-udp-segmentation off",
}

// A world is two hosts, A and B, on a bridge in a third namespace, R. Every
// contestant has its own, so that none finds a way through another. All is gone
// after close.
type world struct {
	ctx      context.Context
	stop     context.CancelFunc
	prefix   string
	dir      string
	pilotctl string
	running  sync.WaitGroup
}

func newWorld(ctx context.Context, variant, name string) (*world, error) {
	dir, err := os.MkdirTemp("", "pilotbench")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, prefix: fmt.Sprintf("bench%d%s", os.Getpid(), name)}
	w.ctx, w.stop = context.WithCancel(ctx)
	if err := w.wire(variant); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) wire(variant string) error {
	if err := w.namespaces(); err != nil {
		return err
	}
	if err := w.unfiltered(); err != nil {
		return err
	}
	for i, host := range []string{"A", "B"} {
		if err := w.plug(host, i+1); err != nil {
			return err
		}
	}
	f := strings.Fields(links[variant])
	if len(f) == 0 {
		return nil
	}
	for _, end := range [][2]string{{"A", "eth0"}, {"R", "pa"}, {"B", "eth0"}, {"R", "pb"}} {
		args := append([]string{lookup("ethtool"), "-K", end[1]}, f...)
		if out, err := w.command(w.ctx, end[0], args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ethtool %s: %w: %s", end[1], err, out)
		}
	}
	return nil
}

func (w *world) namespaces() error {
	return w.lines("netns add A", "netns add B", "netns add R",
		"-n A link set lo up", "-n B link set lo up", "-n R link set lo up",
		"-n R link add br0 type bridge", "-n R link set br0 up", "-n R addr add 10.99.0.254/24 dev br0")
}

// unfiltered makes the bridge the cable that it stands for: where the kernel has
// bridge netfilter, it takes every frame through the hooks of the packet filter,
// which hosts with a cable between them do not pay for.
func (w *world) unfiltered() error {
	const off = `for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$f" ] || echo 0 >"$f" || exit; done`
	if out, err := w.command(w.ctx, "R", "sh", "-c", off).CombinedOutput(); err != nil {
		return fmt.Errorf("bridge without packet filter: %w: %s", err, out)
	}
	return nil
}

// plug connects a host to the bridge.
func (w *world) plug(host string, number int) error {
	port := "p" + strings.ToLower(host)
	return w.lines(
		fmt.Sprintf("-n %s link add eth0 type veth peer name %s netns R", host, port),
		fmt.Sprintf("-n R link set %s master br0 up", port),
		fmt.Sprintf("-n %s addr add 10.99.0.%d/24 dev eth0", host, number),
		fmt.Sprintf("-n %s link set eth0 mtu 1500 up", host),
		fmt.Sprintf("-n %s route add default via 10.99.0.254", host))
}

func (w *world) lines(lines ...string) error {
	for _, line := range lines {
		if err := w.ip(line); err != nil {
			return err
		}
	}
	return nil
}

// ip runs ip with a line in which A, B and R stand for the namespaces.
func (w *world) ip(line string) error {
	args := strings.Fields(line)
	for i, a := range args {
		if a == "A" || a == "B" || a == "R" {
			args[i] = w.namespace(a)
		}
	}
	if out, err := exec.Command(lookup("ip"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", line, err, out)
	}
	return nil
}

func (w *world) namespace(host string) string { return w.prefix + host }

// command is a program that will run on a host.
func (w *world) command(ctx context.Context, host string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, lookup("ip"), append([]string{"netns", "exec", w.namespace(host)}, args...)...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 5 * time.Second
	return c
}

// start runs a daemon on a host until the world ends. What it says is in a file.
func (w *world) start(host, name string, env []string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(w.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	c := w.command(w.ctx, host, args...)
	c.Env, c.Stdout, c.Stderr = append(os.Environ(), env...), log, log
	if err := c.Start(); err != nil {
		log.Close()
		return nil, err
	}
	w.running.Go(func() {
		defer log.Close()
		if err := c.Wait(); err != nil && w.ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "bench: %s ended: %v\n%s", name, err, w.log(name))
		}
	})
	return c, nil
}

func (w *world) log(name string) []byte {
	b, _ := os.ReadFile(filepath.Join(w.dir, name+".log"))
	return b[max(0, len(b)-2000):]
}

// close ends what runs and takes the namespaces away.
func (w *world) close() {
	w.stop()
	w.running.Wait()
	for _, host := range []string{"A", "B", "R"} {
		_ = w.ip("netns del " + host) // one that was not made
	}
	os.RemoveAll(w.dir)
}

func (w *world) goBuild(to, pkg string) error {
	c := exec.CommandContext(w.ctx, "go", "build", "-trimpath", "-o", to, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", pkg, err, out)
	}
	return nil
}

// await repeats ok until it is true.
func (w *world) await(wait time.Duration, what string, ok func() bool) error {
	late := time.After(wait)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-late:
			return fmt.Errorf("after %v: not yet: %s", wait, what)
		case <-tick.C:
		}
	}
	return nil
}

// server starts a program on host b, returns when it has printed a line that
// contains ready, and ends it when the returned function is called.
func (w *world) server(ctx context.Context, ready string, args ...string) (stop func(), err error) {
	c := w.command(ctx, "B", args...)
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() { c.Process.Kill(); c.Wait() }
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), ready) {
			go io.Copy(io.Discard, out)
			return stop, nil
		}
	}
	stop()
	return nil, errors.Join(fmt.Errorf("%s did not say %q", args[0], ready), lines.Err())
}
