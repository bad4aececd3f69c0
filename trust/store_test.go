package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
)

func (p *party) path(file string) string { return filepath.Join(p.dir, file) }

func TestFilesArePrivate(t *testing.T) {
	p := newParty(t, "alice")
	for _, name := range []string{StoreFile, RevocationFile, LockFile} {
		info, err := os.Stat(p.path(name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestSecondOpener(t *testing.T) {
	p := newParty(t, "alice")
	if _, err := Open(p.config()); !errors.Is(err, ErrLocked) {
		t.Errorf("second opener: %v", err)
	}
	p.reopen()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.PutMeta("a", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("change after close: %v", err)
	}
	if err := p.Revoke(p.pub()); err == nil {
		t.Error("revoke after close")
	}
	p.open()
}

func TestUnusableDirectory(t *testing.T) {
	p := newParty(t, "alice")
	c := p.config()
	for _, dir := range []string{"/dev/null/state", "/proc/pilot-state"} {
		c.Dir = dir
		if _, err := Open(c); err == nil || errors.Is(err, ErrDamaged) || errors.Is(err, ErrLocked) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	c.Dir = t.TempDir()
	if err := os.Chmod(c.Dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c); !errors.Is(err, os.ErrPermission) {
		t.Errorf("read-only directory: %v", err)
	}
}

func TestWrongKeyAndSchema(t *testing.T) {
	p := newParty(t, "alice")
	p.Close()
	c := p.config()
	c.Key = crypto.NewPrivateKey(sha256.Sum256([]byte("other")))
	if _, err := Open(c); !errors.Is(err, ErrWrongKey) {
		t.Errorf("other identity: %v", err)
	}
	db, err := bbolt.Open(p.path(StoreFile), 0o600, boltOptions(true))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return (&batch{tx: tx}).putJSON(bucketState, stateKey, stateRecord{Schema: schema + 1, Key: p.pub()})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(p.config()); !errors.Is(err, ErrNewer) {
		t.Errorf("newer schema: %v", err)
	}
	b := cutHeader(cutStep)
	binary.BigEndian.PutUint32(b[8:], cutSchema+1)
	overwrite(t, p.path(RevocationFile), 0, sealCut(b))
	if _, err := Open(p.config()); !errors.Is(err, ErrNewer) {
		t.Errorf("newer revocation file: %v", err)
	}
}

func overwrite(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// filled returns a closed store with enough in it for branch pages.
func filled(t testing.TB) *party {
	p := newParty(t, "alice")
	d := p.begin()
	for i := range 30 {
		d.relationFor(t, i)
	}
	if err := d.commit(); err != nil {
		t.Fatal(err)
	}
	d.end()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

// relationFor makes a peer without the exchange that leads to it.
func (d *draft) relationFor(t testing.TB, i int) crypto.PublicKey {
	key := crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "peer", i))).Public()
	r := d.relation(key)
	r.Name, r.Addr = fmt.Sprintf("peer%d", i), addrOf(key)
	r.Card = &cardRecord{Counter: 7, Seal: make([]byte, 1216), Serial: 1}
	id := sha256.Sum256(key[:])
	r.Pair = &pair{
		Current: &slotRecord{ID: id, Static: id, Remote: id, Secret: id, Request: 1, Grant: 2},
		Mine:    terms{Serial: 2, Rests: 1, Ports: DefaultAsk}, Theirs: terms{Serial: 1, Rests: 1, Ports: DefaultOffer},
	}
	return key
}

func TestCutInHalf(t *testing.T) {
	p := filled(t)
	whole, err := os.ReadFile(p.path(StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	cuts, err := os.ReadFile(p.path(RevocationFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file  string
		whole []byte
	}{{StoreFile, whole}, {RevocationFile, cuts}} {
		for _, n := range []int{0, 1, 100, boltPage, len(c.whole) / 4, len(c.whole) / 2, len(c.whole)/2 + 33} {
			if err := os.WriteFile(p.path(c.file), c.whole[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(p.config())
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s cut to %d of %d bytes: %v", c.file, n, len(c.whole), err)
			}
			if err == nil {
				s.Close()
			} else if c.file == StoreFile && !strings.Contains(err.Error(), "backup") {
				t.Errorf("no hint: %v", err)
			}
		}
		if err := os.WriteFile(p.path(c.file), c.whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.open()
	if n := len(p.Peers()); n != 30 {
		t.Errorf("%d peers", n)
	}
	p.Close()
	if err := os.Remove(p.path(RevocationFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(p.config()); !errors.Is(err, ErrDamaged) {
		t.Errorf("revocation file missing: %v", err)
	}
}

// A damaged byte anywhere is found, or it lies where nothing is stored. It never
// leads to a fault, a panic or a different state.
func TestFlippedBytes(t *testing.T) {
	p := filled(t)
	file, err := os.ReadFile(p.path(StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "flipped.db")
	want, err := tallyOf(file)
	if err != nil {
		t.Fatal(err)
	}
	found, passed, pages := 0, 0, map[int]bool{}
	for at := range file {
		if off := at % boltPage; off > 40 && (at*7)%251 != 0 { // all of each header, a sample of the rest
			continue
		}
		file[at] ^= 1 << (at % 8)
		got, err := tallyOf(file)
		if err != nil || got != want {
			found++
			pages[at/boltPage] = true
		} else if passed++; passed%50 == 0 {
			// What passes must not trouble bbolt either.
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			db, _, err := openDB(path, true)
			if err != nil {
				t.Fatalf("byte %d flipped: %v", at, err)
			}
			err = guard(func() error {
				return db.Update(func(tx *bbolt.Tx) error {
					return (&batch{tx: tx}).put(bucketMeta, []byte("k"), []byte("v"))
				})
			})
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatalf("byte %d flipped: %v", at, err)
			}
		}
		file[at] ^= 1 << (at % 8)
	}
	if found < 500 || !pages[0] || !pages[1] {
		t.Errorf("only %d flips found, on pages %v", found, pages)
	}
	whole := file

	// A whole page of noise, through Open.
	for page := range len(whole) / boltPage {
		bad := bytes.Clone(whole)
		for i := range boltPage {
			bad[page*boltPage+i] = byte(i*page + 77)
		}
		if err := os.WriteFile(p.path(StoreFile), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(p.config())
		switch {
		case err == nil:
			if n := len(s.Peers()); n != 30 {
				t.Errorf("page %d: %d peers", page, n)
			}
			s.Close()
		case !errors.Is(err, ErrDamaged):
			t.Errorf("page %d: %v", page, err)
		}
	}
}

// tallyOf inspects a file and adds up all content, the state record's too.
func tallyOf(file []byte) (t tally, err error) {
	err = inspectBolt(bytes.NewReader(file), int64(len(file)), func(bucket, key, value []byte) error {
		content, err := openValue(bucket, key, value)
		t.Records++
		t.Sum += uint64(valueSum(bucket, key, content))
		return err
	})
	return t, err
}

// The daemon runs while the file is cut off under it: an error, not a crash.
func TestCutOffWhileOpen(t *testing.T) {
	p := filled(t)
	p.open()
	if err := os.Truncate(p.path(StoreFile), 2*boltPage); err != nil {
		t.Fatal(err)
	}
	key := p.Peers()[0].Key
	err := p.Rename(key, "renamed")
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("rename: %v", err)
	}
	if q, _ := p.Peer(key); q.Name == "renamed" {
		t.Error("an error changed the memory")
	}
	if err := p.Revoke(key); err != nil { // does not need the database
		t.Errorf("revoke: %v", err)
	}
	if _, ok := p.Peer(key); ok {
		t.Error("still a peer")
	}
	if err := p.PutMeta("x", nil); !errors.Is(err, ErrDamaged) { // and again, without hanging
		t.Errorf("put meta: %v", err)
	}
}

func TestRevokeWithoutDatabase(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	backup, err := os.ReadFile(bob.path(StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	carol := newParty(t, "carol")
	carol.ask(bob, "80", "7")
	carol.send(bob)
	bob.db.Close() // as good as a full disk: nothing can be written
	if _, err := bob.Approve(carol.pub(), ApproveOptions{}); err == nil {
		t.Fatal("approved without a database")
	}
	if len(bob.Peers()) != 1 || len(bob.Incoming()) != 1 {
		t.Fatal("an error changed the memory")
	}
	if err := bob.Revoke(alice.pub()); err != nil {
		t.Fatal(err)
	}
	if err := bob.Block(carol.pub()); err != nil {
		t.Fatal(err)
	}
	if len(bob.Peers())+len(bob.Incoming()) != 0 || len(bob.Outbox()) != 1 {
		t.Fatal("not revoked in memory")
	}
	notice := bob.Outbox()
	// The database comes back: what it missed is written with the next change.
	if bob.db, _, err = openDB(bob.path(StoreFile), true); err != nil {
		t.Fatal(err)
	}
	if err := bob.PutMeta("x", []byte("y")); err != nil {
		t.Fatal(err)
	}
	bob.reopen()
	if len(bob.Peers()) != 0 || len(bob.Blocked()) != 1 || len(bob.Outbox()) != 1 || bob.Outbox()[0].ID != notice[0].ID {
		t.Fatal("the database did not catch up")
	}

	// A database from before the revocation: the file wins, and alice is told.
	bob.Close()
	if err := os.WriteFile(bob.path(StoreFile), backup, 0o600); err != nil {
		t.Fatal(err)
	}
	bob.open()
	if len(bob.Peers()) != 0 || len(bob.Blocked()) != 1 {
		t.Fatal("a revoked peer is back")
	}
	wantKind(t, bob.send(alice), Revoked)
	bob.reopen()
	if len(bob.Peers())+len(bob.Outbox()) != 0 {
		t.Fatal("not written down")
	}

	// No database at all: revocations stay, the rest is asked anew.
	bob.Close()
	if err := os.Remove(bob.path(StoreFile)); err != nil {
		t.Fatal(err)
	}
	bob.open()
	if len(bob.Blocked()) != 1 || bob.book[alice.pub()].Cut == 0 {
		t.Fatal("revocations are lost")
	}
}

// A cut that the database knows to be older than a pair does not end it.
func TestCutsDoNotOutliveNewTrust(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	if err := bob.Revoke(alice.pub()); err != nil {
		t.Fatal(err)
	}
	settle(alice, bob)
	alice.ask(bob, "80", "7")
	alice.send(bob)
	bob.approve(alice)
	settle(alice, bob)
	for range 2 {
		bob.reopen()
		matches(alice, bob)
		if len(bob.Outbox()) != 0 {
			t.Fatal("told a revocation that is over")
		}
	}
}

func TestRevocationFile(t *testing.T) {
	const few = 64
	path := filepath.Join(t.TempDir(), "cuts")
	if err := createCuts(path, few, false); err != nil {
		t.Fatal(err)
	}
	c, err := openCuts(path, false)
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) crypto.PublicKey {
		return crypto.NewPrivateKey(sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))).Public()
	}
	keys := make([]crypto.PublicKey, few)
	for i := range keys {
		keys[i] = key(i)
		if err := c.put(keys[i], uint64(i+1), i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.put(keys[7], 100000, true); err != nil { // a second record of one key takes its slot
		t.Fatal(err)
	}
	extra := key(few)
	if err := c.put(extra, 1, false); err == nil {
		t.Error("a full file took a record although the database holds none")
	}
	c.markStored(keys[3], 4)
	c.markStored(keys[2], 1) // an older cut
	if err := c.put(extra, 1, false); err != nil {
		t.Error("the oldest stored record does not give way:", err)
	}
	if c.cuts[keys[3]] != nil || c.cuts[keys[2]] == nil {
		t.Error("the wrong record gave way")
	}
	if err := c.grow(); err != nil {
		t.Fatal(err)
	}
	if err := c.put(key(few+1), 2, false); err != nil {
		t.Fatal(err)
	}
	before := c.cuts
	c.close()
	if c, err = openCuts(path, false); err != nil {
		t.Fatal(err)
	}
	if len(c.cuts) != few+1 || c.total != few+cutStep || len(c.free) != cutStep-1 {
		t.Fatalf("%d cuts, %d slots, %d free", len(c.cuts), c.total, len(c.free))
	}
	for k, rec := range before {
		if got := c.cuts[k]; got == nil || got.serial != rec.serial || got.blocked != rec.blocked || got.slot != rec.slot {
			t.Fatalf("%s: %+v, want %+v", k, got, rec)
		}
	}
	c.close()

	// Growth that was interrupted leaves the old capacity; a loss is seen.
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"half a growth behind", append(bytes.Clone(whole), whole[:cutSize*10+5]...), true},
		{"one step lost", whole[:cutSize*(few+1)], false},
		{"one byte lost", whole[:len(whole)-1], false},
		{"record flipped", flip(whole, cutSize*5+40), false},
		{"empty record flipped", flip(whole, len(whole)-10), false},
		{"header flipped", flip(whole, 13), false},
	} {
		if err := os.WriteFile(path, tc.b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := openCuts(path, false)
		if (err == nil) != tc.ok || !tc.ok && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil {
			c.close()
		}
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 4
	return b
}

func FuzzCut(f *testing.F) {
	f.Add((&cut{key: crypto.NewPrivateKey([32]byte{1}).Public(), serial: 5, order: 6, blocked: true}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != cutSize {
			return
		}
		for _, raw := range [][]byte{b, sealCut(bytes.Clone(b))} {
			if c, err := decodeCut(raw, 0); err == nil && !bytes.Equal(c.encode(), raw) {
				t.Fatal("accepted, but encodes differently")
			}
		}
	})
}

// The inspection must hold for any file, not only for one with a flipped bit.
func FuzzInspect(f *testing.F) {
	p := newParty(f, "alice")
	p.Close()
	whole, err := os.ReadFile(p.path(StoreFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:4*boltPage], 3*boltPage+4, uint64(1<<40))
	f.Add(whole, 3*boltPage+16, uint64(7))
	f.Add(whole, 16, uint64(9))
	f.Fuzz(func(t *testing.T, b []byte, at int, word uint64) {
		b = bytes.Clone(b)
		if at >= 0 && at+8 <= len(b) {
			binary.NativeEndian.PutUint64(b[at:], word)
		}
		_ = inspectBolt(bytes.NewReader(b), int64(len(b)), func(bucket, key, value []byte) error { return nil })
	})
}

func TestMeta(t *testing.T) {
	p := newParty(t, "alice")
	if err := p.PutMeta("port", []byte("4242")); err != nil {
		t.Fatal(err)
	}
	if err := p.PutMeta("empty", []byte{}); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	if v, ok := p.GetMeta("port"); !ok || string(v) != "4242" {
		t.Errorf("%q, %v", v, ok)
	}
	if v, ok := p.GetMeta("empty"); !ok || len(v) != 0 {
		t.Errorf("%q, %v", v, ok)
	}
	if err := p.PutMeta("port", nil); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	if _, ok := p.GetMeta("port"); ok {
		t.Error("deleted value is there")
	}
	if err := p.PutMeta("", []byte("x")); err == nil {
		t.Error("empty key")
	}
}

// Records of one version are read by the next: the JSON names are fixed.
func TestRecordNames(t *testing.T) {
	p := newParty(t, "alice")
	d := p.begin()
	key := d.relationFor(t, 1)
	b, err := json.Marshal(d.rel[key])
	d.end()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	mine := m["pair"].(map[string]any)["mine"].(map[string]any)
	if mine["ports"] != DefaultAsk.String() || mine["serial"] != 2.0 || m["name"] != "peer1" {
		t.Errorf("%s", b)
	}
	if s := fmt.Sprintf("%v %+v %s", d.rel[key].Pair.Current, *d.rel[key].Pair.Current, d.rel[key].Pair.Current.Secret); strings.Contains(s, "0x") || strings.Contains(s, "[1") {
		t.Errorf("secrets are printed: %s", s)
	}
}

func TestConcurrentUse(t *testing.T) {
	alice, bob := trusted(t, "80", "7")
	done := make(chan error)
	work := []func() error{
		func() error { return bob.PutMeta("k", []byte("v")) },
		func() error { return bob.Rename(alice.pub(), "alice") },
		func() error {
			bob.Peers()
			bob.Incoming()
			bob.Outgoing()
			bob.Outbox()
			bob.Now()
			bob.NextExpiry()
			return nil
		},
		func() error { _, err := bob.Receive([]byte("junk")); return err },
		func() error {
			ports := DefaultAsk
			_, err := bob.Approve(alice.pub(), ApproveOptions{Ports: &ports})
			return err
		},
		func() error { bob.Lookup(alice.pub().Fingerprint()); bob.GetMeta("k"); bob.Blocked(); return nil },
	}
	for _, f := range work {
		go func() {
			var err error
			for range 20 {
				err = errors.Join(err, f())
			}
			done <- err
		}()
	}
	for range work {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if len(bob.Outbox()) != 1 {
		t.Errorf("%d mails of terms, want the latest only", len(bob.Outbox()))
	}
}

// BenchmarkLarge measures a store of 10,000 peers.
func BenchmarkLarge(b *testing.B) {
	p := newParty(b, "alice")
	d := p.begin()
	var key crypto.PublicKey
	for i := range 10000 {
		key = d.relationFor(b, i)
	}
	if err := d.commit(); err != nil {
		b.Fatal(err)
	}
	d.end()
	b.Run("Open", func(b *testing.B) {
		for range b.N {
			p.reopen()
		}
	})
	b.Run("Peers", func(b *testing.B) {
		for range b.N {
			if len(p.Peers()) != 10000 {
				b.Fatal("peers are missing")
			}
		}
	})
	b.Run("Peer", func(b *testing.B) {
		for range b.N {
			p.Peer(key)
		}
	})
	b.Run("Rename+Peers", func(b *testing.B) {
		for i := range b.N {
			if err := p.Rename(key, fmt.Sprint("name", i)); err != nil {
				b.Fatal(err)
			}
			p.Peers()
		}
	})
}

// BenchmarkRevoke measures the two synced writes of a revocation.
func BenchmarkRevoke(b *testing.B) {
	p := newParty(b, "alice")
	p.Close()
	p.tweak = func(c *Config) { c.NoSync = false }
	p.open()
	var keys []crypto.PublicKey
	d := p.begin()
	for i := range b.N {
		keys = append(keys, d.relationFor(b, i))
	}
	if err := d.commit(); err != nil {
		b.Fatal(err)
	}
	d.end()
	b.ResetTimer()
	start := time.Now()
	for _, key := range keys {
		if err := p.Revoke(key); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/float64(b.N), "µs/revoke")
}
