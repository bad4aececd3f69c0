package main

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/net/http/httpproxy"

	"github.com/pilotnet/pilot/overlay"
)

// proxies are those of the environment: HTTPS_PROXY, or HTTP_PROXY where only
// that is set, except for what NO_PROXY names. caFile holds certificates that are
// trusted besides the system's; it may be empty.
func (p *program) proxies(caFile string) (overlay.Proxies, error) {
	env := func(names ...string) string {
		for _, name := range names {
			if v := p.getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	c := httpproxy.Config{
		HTTPSProxy: env("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"),
		NoProxy:    env("NO_PROXY", "no_proxy"),
	}
	found := overlay.Proxies{}
	if c.HTTPSProxy != "" {
		found.Find = c.ProxyFunc()
	}
	if caFile == "" {
		return found, nil
	}
	pem, err := os.ReadFile(caFile)
	if errors.Is(err, fs.ErrNotExist) {
		return found, usagef("--ca-file: %v", err)
	}
	if err != nil {
		return found, systemError("read the certificates", err)
	}
	if found.CA, err = x509.SystemCertPool(); err != nil {
		found.CA = x509.NewCertPool() // a system without any
	}
	if !found.CA.AppendCertsFromPEM(pem) {
		return found, usagef("--ca-file %s: no certificate in it", caFile).WithHint("want PEM: -----BEGIN CERTIFICATE-----")
	}
	return found, nil
}
