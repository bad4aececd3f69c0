package disk_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
	"github.com/pilotnet/pilot/overlay/services/events"
	"github.com/pilotnet/pilot/overlay/services/exchange"
	"github.com/pilotnet/pilot/overlay/services/tasks"
)

// setNumber changes the number of a database; empty: it has none.
func setNumber(t *testing.T, path, number string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		name := []byte("schema")
		if err := tx.DeleteBucket(name); err != nil || number == "" {
			return err
		}
		b, err := tx.CreateBucket(name)
		if err != nil {
			return err
		}
		return b.Put(name, []byte(number))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDatabaseSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	open := func(known int) error {
		db, err := disk.Database{Schema: known, Buckets: [][]byte{[]byte("b")}}.Open(path)
		if err == nil {
			err = db.Close()
		}
		return err
	}
	if err := open(2); err != nil { // it is made
		t.Fatal(err)
	}
	for _, c := range []struct {
		number string // that the file has
		known  int
		want   error
	}{
		{"2\n", 2, nil}, {"2\n", 3, nil}, {"1\n", 0, nil}, {"", 1, nil}, {"", 2, nil},
		{"2\n", 1, disk.ErrNewer}, {"2\n", 0, disk.ErrNewer}, {"70\n", 2, disk.ErrNewer},
		{"0\n", 1, disk.ErrDamaged}, {"-1\n", 1, disk.ErrDamaged}, {"two", 1, disk.ErrDamaged},
	} {
		setNumber(t, path, c.number)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := open(c.known); !errors.Is(err, c.want) {
			t.Errorf("%q opened by a program that knows %d: %v, want %v", c.number, c.known, err, c.want)
		}
		after, err := os.ReadFile(path)
		if err != nil || c.want != nil && !bytes.Equal(before, after) {
			t.Errorf("%q: the file was changed, %v", c.number, err)
		}
	}
	// One without a number has the first from now on.
	setNumber(t, path, "")
	if err := open(2); err != nil {
		t.Error(err)
	}
	if err := open(1); err != nil {
		t.Errorf("a store without a number became a newer one: %v", err)
	}
}

func TestCheckSchema(t *testing.T) {
	for _, c := range []struct {
		text string // of the file; empty: there is none
		want error
		left string
	}{
		{"", nil, "1\n"}, {"1\n", nil, "1\n"}, {"2", nil, "2"}, {"3\n", disk.ErrNewer, "3\n"}, {"x", disk.ErrDamaged, "x"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, disk.SchemaFile)
		if c.text != "" {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := disk.CheckSchema(dir, 2); !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.text, err, c.want)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != c.left {
			t.Errorf("%q became %q, %v", c.text, left, err)
		}
	}
}

// Every service with a store refuses one of a newer version, and says which file it is
// and what to do. The others go on.
func TestServicesRefuseNewer(t *testing.T) {
	for _, c := range []struct {
		service services.Service
		file    string
	}{{events.NewService(), "events/events.db"}, {tasks.NewService(nil), "tasks/tasks.db"}, {exchange.NewService(), "exchange/schema"}} {
		state := t.TempDir()
		path := filepath.Join(state, filepath.FromSlash(c.file))
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".db") {
			db, err := disk.Database{}.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			db.Close()
			setNumber(t, path, "1000\n")
		} else if err := os.WriteFile(path, []byte("1000\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := c.service.Run(t.Context(), services.Env{StateDir: state, Logger: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, disk.ErrNewer) {
			t.Errorf("%s: %v", c.service.Name(), err)
			continue
		}
		for _, says := range []string{strings.TrimSuffix(path, "/schema"), "schema 1000", "install the version"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v does not say %q", c.service.Name(), err, says)
			}
		}
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
		if len(left) != 1 {
			t.Errorf("%s made %q", c.service.Name(), left)
		}
	}
}
