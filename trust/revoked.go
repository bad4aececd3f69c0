package trust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/pilotnet/pilot/crypto"
)

const (
	cutMagic  = "PILOTREV"
	cutSize   = 64   // header and records alike: divides any sector
	cutStep   = 4096 // records by which the file grows
	cutBlock  = 1    // flag: the key is blocked
	cutSchema = 1
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// A cut is one record of the revocation file: everything between us and the key
// up to the serial is void.
type cut struct {
	key     crypto.PublicKey
	serial  uint64
	blocked bool
	order   uint64 // counts the writes; tells which records are the oldest
	slot    int    // where it lies
	stored  bool   // the store's database holds it too
}

// A cutFile is the revocation file. Every byte of it is written when it is made,
// so that a revocation needs no new block of the disk: one record of 64 bytes is
// overwritten in place and synced.
type cutFile struct {
	file  *os.File
	cuts  map[crypto.PublicKey]*cut
	free  []int // free slots, lowest last
	order uint64
	total int
	sync  bool
}

// createCuts makes an empty revocation file under a temporary name and moves it
// to its place, so that a file that exists is complete.
func createCuts(path string, records int, sync bool) error {
	b := append(cutHeader(records), bytes.Repeat(emptyCut(), records)...)
	return writeWhole(path, b, sync)
}

func cutHeader(records int) []byte {
	b := make([]byte, cutSize)
	copy(b, cutMagic)
	binary.BigEndian.PutUint32(b[8:], cutSchema)
	binary.BigEndian.PutUint32(b[12:], uint32(records))
	return sealCut(b)
}

// emptyCut is not zeros: file systems keep blocks of zeros as holes.
func emptyCut() []byte { return bytes.Repeat([]byte{0xff}, cutSize) }

func (c *cut) encode() []byte {
	b := make([]byte, cutSize)
	copy(b, c.key[:])
	binary.BigEndian.PutUint64(b[32:], c.serial)
	binary.BigEndian.PutUint64(b[40:], c.order)
	if c.blocked {
		b[48] = cutBlock
	}
	return sealCut(b)
}

func sealCut(b []byte) []byte {
	binary.BigEndian.PutUint32(b[60:], crc32.Checksum(b[:60], crcTable))
	return b
}

func decodeCut(b []byte, slot int) (*cut, error) {
	if binary.BigEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], crcTable) {
		return nil, errors.New("checksum is wrong")
	}
	key, err := crypto.ParsePublicKey(b[:32])
	if err != nil {
		return nil, err
	}
	c := &cut{key: key, serial: binary.BigEndian.Uint64(b[32:]), order: binary.BigEndian.Uint64(b[40:]), slot: slot}
	c.blocked = b[48] == cutBlock
	if !bytes.Equal(c.encode(), b) {
		return nil, errors.New("unknown flag")
	}
	return c, nil
}

// openCuts reads the whole file and checks every record.
func openCuts(path string, sync bool) (*cutFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("trust: open revocation file: %w", err)
	}
	c := &cutFile{file: f, cuts: map[crypto.PublicKey]*cut{}, sync: sync}
	if err := c.load(path); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// settle makes durable what load read, for the reason that settleDB tells.
func (c *cutFile) settle() error {
	if !c.sync {
		return nil
	}
	b := make([]byte, (c.total+1)*cutSize)
	_, err := c.file.ReadAt(b, 0)
	if err == nil {
		_, err = c.file.WriteAt(b, 0)
	}
	if err != nil {
		return fmt.Errorf("trust: write revocation file: %w", err)
	}
	return c.flush()
}

func (c *cutFile) load(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("trust: read revocation file: %w", err)
	}
	damaged := func(why string) error {
		return fmt.Errorf("trust: revocation file %s: %s: %w", path, why, ErrDamaged)
	}
	if len(b) < cutSize {
		return damaged(fmt.Sprintf("%d bytes, cut off", len(b)))
	}
	c.total = int(binary.BigEndian.Uint32(b[12:]))
	if !bytes.Equal(b[:cutSize], cutHeader(c.total)) {
		if string(b[:8]) == cutMagic && binary.BigEndian.Uint32(b[8:]) > cutSchema {
			return fmt.Errorf("trust: revocation file %s: %w", path, ErrNewer)
		}
		return damaged("wrong header")
	}
	if len(b)/cutSize-1 < c.total { // more is a growth that was interrupted
		return damaged(fmt.Sprintf("%d bytes for %d records, cut off", len(b), c.total))
	}
	empty := emptyCut()
	for slot := c.total - 1; slot >= 0; slot-- {
		raw := b[(slot+1)*cutSize:][:cutSize]
		if bytes.Equal(raw, empty) {
			c.free = append(c.free, slot)
			continue
		}
		rec, err := decodeCut(raw, slot)
		if err != nil {
			return damaged(fmt.Sprintf("record %d: %v", slot, err))
		}
		c.order = max(c.order, rec.order)
		// A key owns one slot; two can remain when the machine stopped between
		// two writes of an eviction. The later one counts.
		if old := c.cuts[rec.key]; old == nil || old.order < rec.order {
			c.cuts[rec.key] = rec
		}
	}
	return nil
}

// put makes a cut durable. It needs no space on the disk.
func (c *cutFile) put(key crypto.PublicKey, serial uint64, blocked bool) error {
	rec := &cut{key: key, serial: serial, blocked: blocked, order: c.order + 1}
	old := c.cuts[key]
	var evicted *cut
	switch {
	case old != nil:
		rec.slot = old.slot
	case len(c.free) > 0:
		rec.slot = c.free[len(c.free)-1]
	default:
		for _, o := range c.cuts {
			if o.stored && (evicted == nil || o.order < evicted.order) {
				evicted = o
			}
		}
		if evicted == nil {
			return errors.New("trust: revocation file is full and the database cannot be written")
		}
		rec.slot = evicted.slot
	}
	if err := c.write(rec.encode(), rec.slot); err != nil {
		return err
	}
	c.order = rec.order
	switch {
	case old != nil:
	case evicted != nil:
		delete(c.cuts, evicted.key)
	default:
		c.free = c.free[:len(c.free)-1]
	}
	c.cuts[key] = rec
	return nil
}

func (c *cutFile) write(raw []byte, slot int) error {
	if _, err := c.file.WriteAt(raw, int64(slot+1)*cutSize); err != nil {
		return fmt.Errorf("trust: write revocation file: %w", err)
	}
	return c.flush()
}

func (c *cutFile) flush() error {
	if !c.sync {
		return nil
	}
	if err := c.file.Sync(); err != nil {
		return fmt.Errorf("trust: sync revocation file: %w", err)
	}
	return nil
}

// markStored notes that the database holds the cut of the key, so that its
// record may be the one to go when the file is full.
func (c *cutFile) markStored(key crypto.PublicKey, serial uint64) {
	if rec := c.cuts[key]; rec != nil && rec.serial <= serial {
		rec.stored = true
	}
}

// grow adds room when less than a quarter is left. It is called when nothing
// depends on it; a full disk only means that old records give way to new ones.
func (c *cutFile) grow() error {
	if len(c.free)*4 >= c.total {
		return nil
	}
	b := bytes.Repeat(emptyCut(), cutStep)
	_, err := c.file.WriteAt(b, int64(c.total+1)*cutSize)
	if err == nil {
		err = c.flush()
	}
	if err == nil {
		err = c.write(cutHeader(c.total+cutStep), -1)
	}
	if err != nil {
		return fmt.Errorf("trust: grow revocation file: %w", err)
	}
	free := make([]int, 0, cutStep+len(c.free))
	for slot := c.total + cutStep - 1; slot >= c.total; slot-- {
		free = append(free, slot)
	}
	c.free = append(free, c.free...)
	c.total += cutStep
	return nil
}

func (c *cutFile) close() error { return c.file.Close() }

// writeWhole writes a file so that it is either absent or complete: temporary
// name, sync, rename, sync of the directory.
func writeWhole(path string, b []byte, sync bool) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("trust: create state: %w", err)
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil && sync {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("trust: create state: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
