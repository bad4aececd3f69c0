package rendezvous

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// Names in the state directory.
const (
	keyFile      = "server.key"
	certFile     = "tls.crt"
	certKeyFile  = "tls.key"
	storeFile    = "server.db"
	bindingsFile = "bindings"
)

var keyText = base32.StdEncoding.WithPadding(base32.NoPadding)

// LoadKey returns the server's key from dir, and makes the directory and the key
// if they are missing. The file holds the key in base32, mode 0600.
func LoadKey(dir string) (crypto.DHPrivate, error) {
	path := filepath.Join(dir, keyFile)
	fail := func(err error) (crypto.DHPrivate, error) {
		return crypto.DHPrivate{}, fmt.Errorf("rendezvous: server key %s: %w", path, err)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key, err := crypto.GenerateDH()
		if err != nil {
			return fail(err)
		}
		text := strings.ToLower(keyText.EncodeToString(key[:])) + "\n"
		if err := writeNew(path, []byte(text)); err == nil {
			return key, nil
		} else if !errors.Is(err, os.ErrExist) {
			return fail(err)
		}
		if b, err = os.ReadFile(path); err != nil { // another process was faster
			return fail(err)
		}
	} else if err != nil {
		return fail(err)
	} else if err := disk.Named(path); err != nil {
		return fail(err)
	}
	raw, err := keyText.DecodeString(strings.ToUpper(strings.TrimSpace(string(b))))
	if err != nil || len(raw) != len(crypto.DHPrivate{}) {
		return fail(errors.New("not a key in base32; restore it from a backup, or remove it for a new one (agents must then be told the new key)"))
	}
	return crypto.DHPrivate(raw), nil
}

// writeNew makes a file that nobody else may read, all of it or nothing, durably;
// os.ErrExist if there is one already.
func writeNew(path string, b []byte) error {
	if err := disk.MakeDir(filepath.Dir(path)); err != nil {
		return err
	}
	return disk.Create(path, b)
}

// loadCertificate returns the TLS certificate from dir. With an empty dir, or
// when there is none yet, it makes a self-signed one.
func loadCertificate(dir string, now time.Time) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("rendezvous: TLS certificate: %w", err)
	}
	certPath, keyPath := filepath.Join(dir, certFile), filepath.Join(dir, certKeyFile)
	if dir != "" {
		cert, err := tls.LoadX509KeyPair(certPath, keyPath)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			if err != nil {
				return fail(err)
			}
			return cert, nil
		}
	}
	certPEM, keyPEM, err := selfSigned(now)
	if err != nil {
		return fail(err)
	}
	if dir != "" {
		for path, b := range map[string][]byte{keyPath: keyPEM, certPath: certPEM} {
			os.Remove(path) // half a pair is of no use
			if err := writeNew(path, b); err != nil {
				return fail(err)
			}
		}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fail(err)
	}
	return cert, nil
}

func selfSigned(now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "pilot rendezvous"},
		DNSNames:     []string{"rendezvous.pilot.invalid"},
		NotBefore:    now.AddDate(-1, 0, 0),
		NotAfter:     now.AddDate(20, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
