package rendezvous_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/natt/rendezvous/storetest"
)

func TestMemoryStore(t *testing.T) {
	storetest.Conformance(t, func(*testing.T) rendezvous.Store { return rendezvous.NewMemoryStore() })
}

func openBolt(t *testing.T, path string) *rendezvous.BoltStore {
	t.Helper()
	s, err := rendezvous.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBoltStore(t *testing.T) {
	storetest.Conformance(t, func(t *testing.T) rendezvous.Store {
		return openBolt(t, filepath.Join(t.TempDir(), "server.db"))
	})
}

func fill(t *testing.T, s rendezvous.Store, n int) {
	t.Helper()
	for i := range n {
		a := rendezvous.Agent{
			Key: crypto.PublicKey{byte(i), 1}, Addr: [6]byte{0, 0, 0, 1, 0, byte(i)},
			Claim: make([]byte, 200), Card: make([]byte, 1500),
		}
		if err := s.Register(a); err != nil {
			t.Fatal(err)
		}
		m := rendezvous.Mail{Received: time.UnixMilli(5), Body: append(make([]byte, 3000), byte(i))}
		if _, err := s.Put(a.Key.Fingerprint(), m, 32); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBoltStoreReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.db")
	s := openBolt(t, path)
	fill(t, s, 3)
	if _, err := rendezvous.OpenBolt(path); !errors.Is(err, rendezvous.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openBolt(t, path)
	defer s.Close()
	if agents, mail, err := s.Count(); agents != 3 || mail != 3 || err != nil {
		t.Errorf("after reopening: %d agents, %d mail, %v", agents, mail, err)
	}
}

// A file cut at any page, or with a byte flipped in any page, opens with an error
// or with every record whole: it never faults.
func TestBoltStoreDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "server.db")
	s := openBolt(t, path)
	fill(t, s, 20)
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	try := func(b []byte) error { // each in a file of its own: a failed open may keep its lock
		tries++
		path := filepath.Join(dir, fmt.Sprint(tries))
		defer os.Remove(path)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := rendezvous.OpenBolt(path)
		if err != nil {
			return err
		}
		defer s.Close()
		for i := range 20 {
			if _, err := s.Agent(crypto.PublicKey{byte(i), 1}.Fingerprint()); err != nil &&
				!errors.Is(err, rendezvous.ErrNotFound) {
				return err
			}
		}
		return nil
	}
	for _, n := range []int{1, 100, 4096, 5000, 8192, 16384, len(whole) / 2} {
		if err := try(whole[:n]); !errors.Is(err, rendezvous.ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	damaged := 0
	for at := 0; at < len(whole); at += 4096 {
		for _, offset := range []int{8, 10, 20, 100, 2000} {
			b := append([]byte(nil), whole...)
			b[at+offset] ^= 0x55
			if err := try(b); errors.Is(err, rendezvous.ErrLocked) {
				t.Fatal(err)
			} else if err != nil {
				damaged++
			}
		}
	}
	t.Logf("%d of %d flips noticed", damaged, len(whole)/4096*5)
	if damaged == 0 {
		t.Error("no flipped byte was noticed")
	}
}
