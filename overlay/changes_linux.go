package overlay

import (
	"context"

	"github.com/vishvananda/netlink"
)

// Changes listens to the kernel: addresses and routes that come or go.
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
