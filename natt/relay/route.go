package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// portTLS is the port that nearly every firewall lets out.
const portTLS = 443

// RungWait is how long the next way to a server waits for the one before it.
const RungWait = 200 * time.Millisecond

// A Route is one way to open a stream to a server: to a port of it, straight or
// through an HTTP proxy.
type Route struct {
	Port  uint16
	Proxy *url.URL // http or https, with a user and password if it wants them; nil: straight
}

func (r Route) String() string {
	if r.Proxy != nil {
		return fmt.Sprintf("port %d through proxy %s", r.Port, r.Proxy.Host)
	}
	return fmt.Sprintf("port %d", r.Port)
}

// Routes returns the ways to open a stream to a server, in the order to try:
// the server's own port and 443, then the same through proxy, if that is not nil
// (443 first: proxies rarely allow another).
func Routes(s crypto.Server, proxy *url.URL) []Route {
	list := []Route{{Port: s.Port}}
	if s.Port != portTLS {
		list = append(list, Route{Port: portTLS})
	}
	if proxy != nil {
		list = append(list, Route{Port: portTLS, Proxy: proxy})
		if s.Port != portTLS {
			list = append(list, Route{Port: s.Port, Proxy: proxy})
		}
	}
	return list
}

// ProxyFor asks a function such as httpproxy.Config.ProxyFunc which proxy leads to
// a server; nil and nil if none does.
func ProxyFor(find func(*url.URL) (*url.URL, error), s crypto.Server) (*url.URL, error) {
	if find == nil {
		return nil, nil
	}
	u, err := find(&url.URL{Scheme: "https", Host: s.HostPort()})
	if err != nil || u != nil && (u.Hostname() == "" || strings.Trim(u.Path, "/") != "") {
		// What is wrong is not quoted: it may hold a password.
		return nil, errors.New("relay: the proxy in HTTPS_PROXY is not a URL such as http://HOST:PORT")
	}
	if u != nil && u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("relay: proxy %s: %s is not spoken here, only http and https", u.Host, u.Scheme)
	}
	return u, nil
}

// open opens a stream to the server over a route.
func (c DialConfig) open(ctx context.Context, r Route) (net.Conn, error) {
	target := net.JoinHostPort(c.Server.Host, strconv.Itoa(int(r.Port)))
	if r.Proxy == nil {
		conn, err := c.DialContext(ctx, "tcp", target)
		if err == nil {
			TuneStream(conn)
		}
		return conn, plain(err)
	}
	conn, err := c.openProxy(ctx, r.Proxy)
	if err == nil {
		if err = connect(ctx, conn, r.Proxy, target); err == nil {
			return conn, nil
		}
		conn.Close()
	}
	if ctx.Err() != nil {
		err = errors.New("no answer")
	}
	return nil, fmt.Errorf("proxy %s: %w", r.Proxy.Host, plain(err))
}

// openProxy opens the stream to the proxy itself. Its certificate, unlike the
// server's, has to be good: it is told a password.
func (c DialConfig) openProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	conn, err := c.DialContext(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, err
	}
	TuneStream(conn)
	if proxy.Scheme == "http" {
		return conn, nil
	}
	t := tls.Client(conn, &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname(), RootCAs: c.CA, Time: c.Now, NextProtos: []string{"http/1.1"},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

const maxProxyAnswer = 16 << 10

// connect asks an HTTP proxy for a stream to target (RFC 9110 9.3.6).
func connect(ctx context.Context, conn net.Conn, proxy *url.URL, target string) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", target, target)
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("its answer to CONNECT: %w", plain(err))
	}
	switch { // the body, if any, is not read: the caller closes conn, or it is the stream
	case answer.StatusCode == http.StatusProxyAuthRequired && proxy.User == nil:
		return errors.New("407: it wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT")
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return errors.New("407: it refuses the user and password in HTTPS_PROXY, or wants another method than Basic")
	case answer.StatusCode/100 != 2:
		return fmt.Errorf("it refuses a connection to %s: %d %s", target, answer.StatusCode, http.StatusText(answer.StatusCode))
	case in.Buffered() > 0:
		return errors.New("it sent data that nobody asked for")
	}
	return nil
}

// race tries routes, each RungWait after the one before or at once when that has
// failed, and returns what the first one to succeed opened. What others open
// later is discarded.
func race[T any](ctx context.Context, routes []Route, open func(context.Context, Route) (T, error), discard func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(routes))
	started, ended := 0, 0
	start := func() {
		r := routes[started]
		started++
		go func() {
			v, err := open(ctx, r)
			if err != nil && len(routes) > 1 {
				err = r.over(err)
			}
			results <- result{v, err}
		}()
	}
	timer := time.NewTimer(RungWait)
	defer timer.Stop()
	var errs []error
	start()
	for {
		select {
		case <-timer.C:
			if started < len(routes) {
				start()
				timer.Reset(RungWait)
			}
		case r := <-results:
			ended++
			if r.err == nil || answered(r.err) { // the server's own word: no other way leads to another
				go func() { // those that are still under way
					for range started - ended {
						if late := <-results; late.err == nil {
							discard(late.value)
						}
					}
				}()
				return r.value, r.err
			}
			errs = append(errs, r.err)
			if started < len(routes) && ctx.Err() == nil {
				start()
				timer.Reset(RungWait)
			} else if ended == started {
				return r.value, oneLine(errs)
			}
		}
	}
}

// answered says whether an error is the server's own word.
func answered(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrBusy) || errors.Is(err, ErrServerKey)
}

// oneLine joins errors without line breaks; errors.Is finds each.
func oneLine(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}
