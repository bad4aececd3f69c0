package overlay

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/events"
	"github.com/pilotnet/pilot/overlay/services/exchange"
	"github.com/pilotnet/pilot/overlay/services/tasks"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// TestStateOfReleases: the state directory that each release left opens, with the
// trust in it. One is kept for every release, and none is ever changed; its agent was
// called gina and trusted by anna for port 7.
func TestStateOfReleases(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join("testdata", "state", "*.tar.gz"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("%v, %v", archives, err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), func(t *testing.T) {
			dir := t.TempDir()
			unpack(t, archive, dir)
			text, err := os.ReadFile(filepath.Join(dir, "identity"))
			if err != nil {
				t.Fatal(err)
			}
			id, err := ipam.ParseIdentity(text)
			if err != nil {
				t.Fatal(err)
			}
			n, err := New(Config{StateDir: dir, Name: "gina", Identity: id, Device: tuntest.New(tuntest.Options{})})
			if err != nil {
				t.Fatal(err)
			}
			defer n.closeAll()
			peers := n.store.Peers()
			if len(peers) != 1 || peers[0].Name != "anna" || peers[0].Out.String() != "7" || peers[0].State != trust.Active {
				t.Errorf("peers: %+v", peers)
			}
			for _, s := range []services.Service{events.NewService(), exchange.NewService(), tasks.NewService(nil)} {
				// A service that wants to listen has opened its store.
				err := s.Run(t.Context(), services.Env{StateDir: dir, Network: noNetwork{}, Logger: n.log})
				if !errors.Is(err, errNoNetwork) {
					t.Errorf("%s: %v", s.Name(), err)
				}
			}
		})
	}
}

// noNetwork is one on which nobody can listen.
type noNetwork struct{}

var errNoNetwork = errors.New("no network")

func (noNetwork) Listen(context.Context, uint16) (net.Listener, error) { return nil, errNoNetwork }
func (noNetwork) ListenPacket(context.Context, uint16) (net.PacketConn, error) {
	return nil, errNoNetwork
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := io.ReadAll(r)
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
