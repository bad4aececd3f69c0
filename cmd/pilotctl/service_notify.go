package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifyManager tells systemd that the daemon is ready, and that it ends when ctx
// does. If the unit has a watchdog it hears of us as long as alive returns: a node
// that hangs is started anew. Without NOTIFY_SOCKET it does nothing. The returned
// function waits until the last word is out.
func notifyManager(ctx context.Context, alive func(), logger *slog.Logger) (wait func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		logger.Warn("the watchdog of the service manager cannot be used", "error", err)
	}
	told, err := daemon.SdNotify(false, daemon.SdNotifyReady)
	if err != nil {
		logger.Warn("the service manager cannot be told that the daemon is ready", "error", err)
	}
	if !told {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		daemon.SdNotify(false, daemon.SdNotifyStopping)
	}()
	if interval > 0 {
		go feedWatchdog(ctx, interval/2, alive)
	}
	return func() { <-done }
}

func feedWatchdog(ctx context.Context, every time.Duration, alive func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			alive()
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}
