package relay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/pilotnet/pilot/crypto"
)

// web is the TLS and HTTP side of one connection to a server. Any certificate is
// accepted, because Noise inside (or the card's own signature) authenticates.
type web struct {
	cfg       DialConfig
	route     Route
	client    http.Client
	transport *http.Transport

	conn   net.Conn // beneath TLS
	opened bool     // the transport has conn

	mu   sync.Mutex
	leaf *x509.Certificate
	pool *x509.CertPool // certificates that came with leaf
}

// newWeb opens the stream; TLS comes with the first request.
func newWeb(ctx context.Context, cfg DialConfig, r Route) (*web, error) {
	conn, err := cfg.open(ctx, r)
	if err != nil {
		if r.Proxy == nil && ctx.Err() != nil {
			err = errors.New("no answer")
		}
		return nil, err
	}
	w := &web{cfg: cfg, route: r, conn: conn}
	w.transport = &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return w.take() },
		DisableKeepAlives: true,
		ForceAttemptHTTP2: false,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ServerName:         cfg.Server.Host,
			InsecureSkipVerify: true, // see above; verify reports what a browser would say
			VerifyConnection:   w.verify,
			NextProtos:         []string{"http/1.1"},
		},
		TLSHandshakeTimeout:    cfg.Timeout,
		ResponseHeaderTimeout:  cfg.Timeout,
		MaxResponseHeaderBytes: 8 << 10,
	}
	w.client = http.Client{
		Transport:     w.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w, nil
}

// take hands the stream to the transport, once.
func (w *web) take() (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened {
		return nil, errors.New("the server ended the connection")
	}
	w.opened = true
	return w.conn, nil
}

func (w *web) url(path string) string {
	return "https://" + net.JoinHostPort(w.cfg.Server.Host, strconv.Itoa(int(w.route.Port))) + path
}

func (w *web) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaf, w.pool = state.PeerCertificates[0], x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		w.pool.AddCert(c)
	}
	return nil
}

// MarkSize is the size of a certificate mark.
const MarkSize = 6

// CertificateMark is what a server says inside Noise of its TLS certificate, so
// that a client sees whether the certificate that it was shown is another's. It
// is too short to stop a determined forger and need not: it only informs.
func CertificateMark(der []byte) (m [MarkSize]byte) {
	sum := sha256.Sum256(der)
	copy(m[:], sum[:])
	return m
}

// tlsWarning says what is unusual about the certificate. mark is the server's own
// word, nil if it has not been asked.
func (w *web) tlsWarning(mark *[MarkSize]byte) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	leaf := w.leaf
	if leaf == nil {
		return ""
	}
	if mark != nil && *mark != [MarkSize]byte{} && *mark != CertificateMark(leaf.Raw) {
		return fmt.Sprintf("inspected on the way: the certificate shown was issued by %q and is not the server's; what is inside stays sealed", issuer(leaf))
	}
	if leaf.CheckSignatureFrom(leaf) == nil || string(leaf.RawIssuer) == string(leaf.RawSubject) {
		return fmt.Sprintf("self-signed certificate of %q", leaf.Subject.CommonName)
	}
	opts := x509.VerifyOptions{DNSName: w.cfg.Server.Host, Roots: w.cfg.CA, Intermediates: w.pool, CurrentTime: w.cfg.Now()}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Sprintf("certificate issued by %q: %v", issuer(leaf), err)
	}
	return ""
}

// issuer names who signed a certificate.
func issuer(c *x509.Certificate) string {
	if c.Issuer.CommonName != "" {
		return c.Issuer.CommonName
	}
	return c.Issuer.String()
}

func (w *web) close() {
	w.transport.CloseIdleConnections()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.opened {
		w.opened = true
		w.conn.Close()
	}
}

// slow turns the end of patience with a server that took the connection into words.
func slow(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("the connection was taken, but TLS or HTTP in it is not answered")
	}
	return plain(err)
}

// FetchCard returns the signed card of an agent at home on cfg.Server. The card
// has been parsed, its signature verified, and its key has this fingerprint.
func FetchCard(ctx context.Context, cfg DialConfig, fp crypto.Fingerprint) ([]byte, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("relay: card of %s from %s: %w", fp, cfg.Server.HostPort(), err)
	}
	b, err := race(ctx, cfg.Routes, func(ctx context.Context, r Route) ([]byte, error) {
		return cfg.fetchCard(ctx, r, fp)
	}, func([]byte) {})
	if err != nil {
		return fail(err)
	}
	card, err := crypto.ParseCard(b)
	if err != nil {
		return fail(err)
	}
	if card.Key.Fingerprint() != fp {
		return fail(fmt.Errorf("%w: %s", ErrWrongCard, card.Key.Fingerprint()))
	}
	return b, nil
}

func (c DialConfig) fetchCard(ctx context.Context, r Route, fp crypto.Fingerprint) ([]byte, error) {
	w, err := newWeb(ctx, c, r)
	if err != nil {
		return nil, err
	}
	defer w.close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url(CardPath+fp.String()), nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, slow(ctx, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, ErrNotFound
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return nil, ErrBusy
	default:
		return nil, fmt.Errorf("HTTP status %s", resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, MaxObject+1))
}
