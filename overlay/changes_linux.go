package overlay

import (
	"context"
	"errors"
	"math"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changes listens to the kernel: addresses and routes that come or go, and the end
// of a sleep of the machine, which may leave both as they were.
func (h hostUnderlay) Changes(ctx context.Context) <-chan struct{} {
	addrs, routes := make(chan netlink.AddrUpdate, 16), make(chan netlink.RouteUpdate, 16)
	failed := func(err error) { h.log.Debug("network events ended", "err", err) }
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: failed}); err != nil {
		h.log.Warn("no network events; changes are seen within a minute", "err", err)
		return nil
	}
	if err := netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: failed}); err != nil {
		h.log.Warn("no route events", "err", err)
	}
	woke := wakes(ctx)
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for {
			select {
			case _, ok := <-addrs:
				if !ok {
					return
				}
			case _, ok := <-routes:
				if !ok {
					return
				}
			case <-woke:
			case <-ctx.Done():
				return
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}

// wakes tells when the machine has slept, or its clock was set: then the kernel
// cancels a timer that asks for it (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). Nil
// if that cannot be had; other things will be noticed then.
func wakes(ctx context.Context) <-chan struct{} {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil
	}
	timer := os.NewFile(uintptr(fd), "timer")
	raw, err := timer.SyscallConn()
	if err != nil {
		timer.Close()
		return nil
	}
	never := &unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	arm := func() error {
		var err error
		closed := raw.Control(func(fd uintptr) {
			err = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, never, nil)
		})
		if errors.Is(err, unix.ECANCELED) {
			err = nil // armed all the same
		}
		return errors.Join(closed, err)
	}
	if arm() != nil {
		timer.Close()
		return nil
	}
	context.AfterFunc(ctx, func() { timer.Close() })
	out := make(chan struct{}, 1)
	go func() {
		var b [8]byte
		for {
			if _, err := timer.Read(b[:]); !errors.Is(err, unix.ECANCELED) {
				return // closed
			}
			select {
			case out <- struct{}{}:
			default:
			}
			if arm() != nil {
				return
			}
		}
	}()
	return out
}
