package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/proxy"
)

// ProxyAuto has a node in userspace mode offer its proxy at ProxyAddress, or,
// where that is taken, at a free port; and no other node.
const (
	ProxyAuto    = "auto"
	ProxyAddress = "127.0.0.1:1080"
)

// openProxy takes the address of the proxy.
func (n *Node) openProxy() error {
	at := n.cfg.Proxy
	if at == "" || at == ProxyAuto && n.stack() == nil {
		return nil
	}
	if at == ProxyAuto {
		at = ProxyAddress
	}
	l, err := proxy.Listen(at)
	if errors.Is(err, syscall.EADDRINUSE) && n.cfg.Proxy == ProxyAuto {
		l, err = proxy.Listen("127.0.0.1:0")
	}
	switch {
	case errors.Is(err, proxy.ErrNotLoopback):
		return Errorf(CodeInvalidArgument, "proxy: %v", err).WithHint("for example --proxy 127.0.0.1:1080; whoever reaches it is this agent")
	case errors.Is(err, syscall.EADDRINUSE):
		return Errorf(CodeConflict, "proxy: %s is taken by another program", at).WithHint("choose another port with --proxy, or --proxy auto")
	case err != nil:
		return fmt.Errorf("overlay: proxy: %w", err)
	}
	n.proxy = l
	return nil
}

// runProxy serves the proxy until ctx ends.
func (n *Node) runProxy(ctx context.Context) error {
	if n.proxy == nil {
		return nil
	}
	own := n.proxy.Addr().String()
	s := proxy.New(proxy.Config{
		Inside: insideOverlay, Dial: n.Dial, Explain: explain, Logger: n.log,
		// Its own address as the next proxy would be a way without an end: up in a
		// shell that has the exports of "proxy env".
		Next: func(u *url.URL) (*url.URL, error) {
			if n.cfg.Proxies.Find == nil {
				return nil, nil
			}
			next, err := n.cfg.Proxies.Find(u)
			if next != nil && next.Host == own {
				return nil, nil
			}
			return next, err
		},
		CA: n.cfg.Proxies.CA,
	})
	return s.Serve(ctx, n.proxy)
}

// insideOverlay says whether a host of a request is one of the overlay's.
func insideOverlay(host string) bool {
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ipam.Prefix().Contains(ip.WithZone(""))
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == ipam.Suffix || strings.HasSuffix(host, "."+ipam.Suffix)
}

// explain puts into words why a peer was not reached.
func explain(err error) string {
	var e *Error
	switch {
	case errors.As(err, &e) && e.Hint != "":
		return e.Message + "; " + e.Hint
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the peer refuses the connection: nothing listens there, or its grant does not include the port"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "the peer does not answer: it is offline, or does not trust this agent any more"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
