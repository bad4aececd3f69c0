package rendezvous

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/pilotnet/pilot/natt/relay"
)

// certificates chooses what the server shows in TLS: the operator's certificate,
// one from an ACME authority for its domain, or a self-signed one. None of them
// matters to agents, whom Noise convinces; they matter to firewalls and proxies.
type certificates struct {
	logger *slog.Logger
	now    func() time.Time
	own    *tls.Certificate // self-signed; nil with files

	acme     *autocert.Manager
	domain   string
	obtained atomic.Bool

	certFile, keyFile string
	mu                sync.Mutex
	file              *tls.Certificate
	stamp             time.Time // of certFile when it was read
	looked            time.Time
}

const (
	lookAtFiles = time.Minute
	acmeRetry   = 10 * time.Minute
)

func (s *Server) certificates() (*certificates, error) {
	c := &certificates{logger: s.cfg.Logger, now: s.cfg.Now, certFile: s.cfg.CertFile, keyFile: s.cfg.CertKeyFile, domain: strings.ToLower(s.cfg.ACME)}
	if (c.certFile == "") != (c.keyFile == "") {
		return nil, errors.New("rendezvous: TLS certificate: want both the file of the certificate and that of its key")
	}
	if c.certFile != "" {
		if err := c.read(); err != nil {
			return nil, fmt.Errorf("rendezvous: TLS certificate: %w", err)
		}
		return c, nil
	}
	own, err := loadCertificate(s.cfg.StateDir, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	c.own = &own
	if c.domain != "" {
		c.acme = &autocert.Manager{Prompt: autocert.AcceptTOS, HostPolicy: autocert.HostWhitelist(c.domain)}
		if s.cfg.StateDir != "" {
			c.acme.Cache = autocert.DirCache(filepath.Join(s.cfg.StateDir, "acme"))
		}
		if s.acmeDirectory != "" {
			c.acme.Client = &acme.Client{DirectoryURL: s.acmeDirectory}
		}
	}
	return c, nil
}

func (c *certificates) config() *tls.Config {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if c.acme != nil {
		conf.NextProtos = append(conf.NextProtos, acme.ALPNProto)
	}
	conf.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := c.choose(hello)
		if l, ok := hello.Conn.(*limitedConn); ok && err == nil && len(cert.Certificate) > 0 {
			mark := relay.CertificateMark(cert.Certificate[0])
			l.mark.Store(&mark)
		}
		return cert, err
	}
	return conf
}

func (c *certificates) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.certFile != "" {
		return c.fromFile(), nil
	}
	if c.acme != nil {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto {
			return c.acme.GetCertificate(hello) // the authority's question
		}
		if c.obtained.Load() && strings.EqualFold(hello.ServerName, c.domain) {
			if cert, err := c.acme.GetCertificate(hello); err == nil {
				return cert, nil
			}
		}
	}
	return c.own, nil
}

// obtain gets the first certificate, so that no connection waits for it. Renewal
// is autocert's.
func (c *certificates) obtain(ctx context.Context) {
	for {
		_, err := c.acme.GetCertificate(&tls.ClientHelloInfo{
			ServerName: c.domain, SupportedVersions: []uint16{tls.VersionTLS13},
			SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
			SupportedCurves: []tls.CurveID{tls.CurveP256},
		})
		if err == nil {
			c.obtained.Store(true)
			c.logger.Info("TLS certificate obtained", "domain", c.domain)
			return
		}
		c.logger.Warn("no TLS certificate yet; showing the self-signed one", "domain", c.domain, "err", err)
		if !sleep(ctx, acmeRetry) {
			return
		}
	}
}

// read loads the operator's files. c.mu is held, or nobody else is there.
func (c *certificates) read() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil && c.now().After(leaf.NotAfter) {
		c.logger.Warn("the TLS certificate has expired; agents use it all the same", "file", c.certFile, "since", leaf.NotAfter)
	}
	c.file, c.stamp, c.looked = &cert, info.ModTime(), c.now()
	return nil
}

// fromFile returns the operator's certificate, read anew if the file has changed.
// A pair that cannot be read leaves the one before in place.
func (c *certificates) fromFile() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= lookAtFiles {
		c.looked = now
		if info, err := os.Stat(c.certFile); err != nil || !info.ModTime().Equal(c.stamp) {
			if err == nil {
				err = c.read()
			}
			if err != nil {
				c.logger.Error("cannot read the changed TLS certificate; keeping the old one", "err", err)
			}
		}
	}
	return c.file
}

type markKey struct{}

// withMark keeps, for the handlers of a connection, where to find the mark of the
// certificate that it was shown.
func withMark(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if l, ok := t.NetConn().(*limitedConn); ok {
			return context.WithValue(ctx, markKey{}, l)
		}
	}
	return ctx
}

func shownMark(ctx context.Context) [relay.MarkSize]byte {
	if l, ok := ctx.Value(markKey{}).(*limitedConn); ok {
		if m := l.mark.Load(); m != nil {
			return *m
		}
	}
	return [relay.MarkSize]byte{}
}
