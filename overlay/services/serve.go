package services

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

// Serve calls handle for each connection in a goroutine of its own and closes
// the connection after it. It returns after the last handler, when ctx has ended, which
// closes all connections, or the listener accepts no more. A handler that panics takes
// its own connection with it and nothing else.
func Serve(ctx context.Context, l *Listener, handle func(context.Context, *Conn)) error {
	stop := context.AfterFunc(ctx, l.Shut)
	defer stop()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for wait := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			handlers.Go(func() { handleOne(ctx, l, c.(*Conn), handle) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // such as too many open files: others may close theirs
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			l.env.Logger.Warn("cannot accept", "address", l.Addr(), "err", err)
			if !sleep(ctx, wait) {
				return nil
			}
		}
	}
}

func handleOne(ctx context.Context, l *Listener, c *Conn, handle func(context.Context, *Conn)) {
	defer c.Close()
	defer func() {
		if v := recover(); v != nil {
			l.env.Logger.Error("a service panicked", "err", fmt.Sprint(v), "peer", c.Peer.Name, "stack", string(debug.Stack()))
		}
	}()
	handle(ctx, c)
}

// sleep waits, and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
