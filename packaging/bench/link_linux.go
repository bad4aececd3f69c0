package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A bad link carries Ethernet frames between two TAP devices in user space: it
// loses some and lets others overtake.
type badLink struct {
	loss, reorder float64 // shares of the frames
	delay         time.Duration
}

// openTAP makes a TAP device in a namespace.
func openTAP(namespace, name string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		f, err := func() (*os.File, error) {
			ns, err := os.Open("/run/netns/" + namespace)
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("enter %s: %w", namespace, err)
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, fmt.Errorf("open /dev/net/tun: %w", err)
			}
			ifr, err := unix.NewIfreq(name)
			if err != nil {
				unix.Close(fd)
				return nil, err
			}
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
				unix.Close(fd)
				return nil, fmt.Errorf("make %s: %w", name, err)
			}
			return os.NewFile(uintptr(fd), name), nil
		}()
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

// join connects host A to the bridge through the bad link until the world ends.
func (w *world) join(l badLink) error {
	a, err := openTAP(w.namespace("A"), "eth0")
	if err != nil {
		return err
	}
	b, err := openTAP(w.namespace("R"), "pa")
	if err != nil {
		a.Close()
		return err
	}
	for _, pair := range [][2]*os.File{{a, b}, {b, a}} {
		w.running.Go(func() { l.carry(w.ctx, pair[0], pair[1]) })
	}
	context.AfterFunc(w.ctx, func() { a.Close(); b.Close() })
	return nil
}

// carry ends when the devices are closed.
func (l badLink) carry(ctx context.Context, from, to *os.File) {
	buf := make([]byte, 65536)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		switch p := rand.Float64(); {
		case p < l.loss:
		case p < l.loss+l.reorder: // the next ones overtake it
			late := append([]byte(nil), buf[:n]...)
			time.AfterFunc(l.delay, func() {
				if ctx.Err() == nil {
					_, _ = to.Write(late) // or it is one more that is lost
				}
			})
		default:
			_, _ = to.Write(buf[:n])
		}
	}
}
