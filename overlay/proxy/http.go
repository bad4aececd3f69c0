package proxy

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
	"net/http/httputil"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const maxAnswer = 16 << 10 // of the next proxy

func (s *Server) transport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(address)
			if err == nil && s.c.Inside(host) {
				ctx, cancel := context.WithTimeout(ctx, dialTime)
				defer cancel()
				return s.c.Dial(ctx, network, address)
			}
			d := net.Dialer{Timeout: dialTime}
			return d.DialContext(ctx, network, address)
		},
		Proxy: func(r *http.Request) (*url.URL, error) {
			if s.c.Inside(r.URL.Hostname()) {
				return nil, nil
			}
			return s.c.Next(r.URL)
		},
		TLSClientConfig:    &tls.Config{RootCAs: s.c.CA},
		DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
	}
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		s.connect(w, r)
	case r.URL.IsAbs() && r.URL.Scheme == "http" && r.URL.Host != "":
		s.forward(w, r)
	case r.URL.IsAbs():
		http.Error(w, "pilot: this proxy takes http:// and CONNECT", http.StatusNotImplemented)
	default:
		// A page in a browser can get here, so it learns nothing.
		http.Error(w, "pilot: this is a proxy (SOCKS 5, HTTP), not a web server", http.StatusBadRequest)
	}
}

// forward sends a request on and its answer back.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	p := &httputil.ReverseProxy{
		Transport: s.next,
		Rewrite: func(pr *httputil.ProxyRequest) {
			// The request goes on as it came, but for the headers of one hop.
			pr.Out.Host = pr.In.Host
			for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
				if v, ok := pr.In.Header[h]; ok {
					pr.Out.Header[h] = v
				}
			}
			if _, ok := pr.In.Header["User-Agent"]; !ok {
				pr.Out.Header["User-Agent"] = nil // none, rather than that of Go
			}
		},
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, r *http.Request, err error) { s.refuse(w, r.URL.Hostname(), err) },
		ErrorLog:      s.web.ErrorLog,
	}
	p.ServeHTTP(w, r)
}

// refuse answers why a destination was not reached.
func (s *Server) refuse(w http.ResponseWriter, host string, err error) {
	status, text := http.StatusBadGateway, err.Error()
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, syscall.ETIMEDOUT) {
		status = http.StatusGatewayTimeout
	}
	if s.c.Inside(host) && s.c.Explain != nil {
		text = s.c.Explain(err)
	}
	http.Error(w, fmt.Sprintf("pilot: %s: %s", host, text), status)
}

// connect makes the connection a tunnel.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		http.Error(w, "pilot: CONNECT wants HOST:PORT", http.StatusBadRequest)
		return
	}
	to, err := s.dial(r.Context(), host, port)
	if err != nil {
		s.refuse(w, host, err)
		return
	}
	defer to.Close()
	conn, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "pilot: CONNECT wants HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	// What the program has sent already lies in the server's buffer.
	if n := in.Reader.Buffered(); n > 0 {
		b, _ := in.Reader.Peek(n)
		if _, err := to.Write(b); err != nil {
			return
		}
	}
	join(r.Context(), conn, to)
}

// through connects to an address outside by the next proxy.
func (s *Server) through(ctx context.Context, next *url.URL, address string) (net.Conn, error) {
	fail := func(conn net.Conn, err error) (net.Conn, error) {
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("proxy %s: %w", next.Host, err)
	}
	port := next.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[next.Scheme]
	}
	if next.Scheme != "http" && next.Scheme != "https" {
		return fail(nil, fmt.Errorf("a proxy of scheme %q is not known here", next.Scheme))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(next.Hostname(), port))
	if err != nil {
		return fail(nil, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if next.Scheme == "https" {
		t := tls.Client(conn, &tls.Config{ServerName: next.Hostname(), RootCAs: s.c.CA, NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			return fail(conn, err)
		}
		conn = t
	}
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if u := next.User; u != nil {
		password, _ := u.Password()
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		return fail(conn, err)
	}
	c := &peekConn{Conn: conn, in: bufio.NewReaderSize(conn, maxAnswer), closed: make(chan struct{})}
	answer, err := http.ReadResponse(c.in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fail(conn, err)
	}
	if answer.StatusCode/100 != 2 {
		return fail(conn, fmt.Errorf("it answers %d %s", answer.StatusCode, http.StatusText(answer.StatusCode)))
	}
	if !stop() {
		return fail(conn, ctx.Err())
	}
	return c, nil
}
