package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/pilotnet/pilot/crypto"
)

// web is the TLS and HTTP side of one control channel. Any certificate is
// accepted, because Noise inside (or the card's own signature) authenticates.
type web struct {
	cfg       DialConfig
	client    http.Client
	transport *http.Transport

	mu      sync.Mutex
	warning string
}

func newWeb(cfg DialConfig) *web {
	w := &web{cfg: cfg}
	w.transport = &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.dial(ctx, "tcp") },
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
	return w
}

func (w *web) dial(ctx context.Context, network string) (net.Conn, error) {
	return w.cfg.DialContext(ctx, network, w.cfg.Server.HostPort())
}

func (w *web) url(path string) string { return "https://" + w.cfg.Server.HostPort() + path }

func (w *web) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	opts := x509.VerifyOptions{DNSName: state.ServerName, Intermediates: x509.NewCertPool(), CurrentTime: w.cfg.Now()}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	warning := ""
	if leaf.CheckSignatureFrom(leaf) == nil || string(leaf.RawIssuer) == string(leaf.RawSubject) {
		warning = fmt.Sprintf("self-signed certificate of %q", leaf.Subject.CommonName)
	} else if _, err := leaf.Verify(opts); err != nil {
		warning = fmt.Sprintf("certificate issued by %q: %v", leaf.Issuer.CommonName, err)
	}
	w.mu.Lock()
	w.warning = warning
	w.mu.Unlock()
	return nil
}

func (w *web) close() { w.transport.CloseIdleConnections() }

// FetchCard returns the signed card of an agent at home on cfg.Server. The card
// has been parsed, its signature verified, and its key has this fingerprint.
func FetchCard(ctx context.Context, cfg DialConfig, fp crypto.Fingerprint) ([]byte, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("relay: card of %s from %s: %w", fp, cfg.Server.HostPort(), err)
	}
	w := newWeb(cfg)
	defer w.close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url(CardPath+fp.String()), nil)
	if err != nil {
		return fail(err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fail(ErrNotFound)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fail(ErrBusy)
	default:
		return fail(fmt.Errorf("HTTP status %s", resp.Status))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxObject+1))
	if err != nil {
		return fail(err)
	}
	card, err := crypto.ParseCard(b)
	if err != nil {
		return fail(err)
	}
	if card.Key.Fingerprint() != fp {
		return fail(fmt.Errorf("the server sent the card of %s", card.Key.Fingerprint()))
	}
	return b, nil
}
