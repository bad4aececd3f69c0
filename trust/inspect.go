package trust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The database file is read through once, by offsets that are checked, before
// bbolt maps it into memory: bbolt trusts its pages, which carry no checksum, and
// follows a flipped pointer out of the file. The layout below is bbolt's (format
// version 2, pages of 4096 bytes, integers in the machine's byte order).
const (
	boltPage    = 4096
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	boltHeader  = 16 // page: id u64, flags u16, count u16, overflow u32
	boltElement = 16 // branch: pos, ksize u32, page u64; leaf: flags, pos, ksize, vsize u32
	boltBranch  = 1
	boltLeaf    = 2
	boltFree    = 16 // the page lists free pages: ids u64, ascending
	boltBucket  = 1  // leaf element flag: the value is a bucket
)

type boltMeta struct {
	root, free, high, txid uint64
}

type inspector struct {
	file io.ReaderAt
	high uint64 // pages in use lie below
	seen map[uint64]bool
	// value is called with each value: path holds the bucket names.
	value func(bucket, key, value []byte) error
}

// inspectBolt checks the structure of a whole database file: both meta pages,
// every page that can be reached, the order of all keys, each value, and that
// every other page is on the free list and no page twice.
func inspectBolt(file io.ReaderAt, size int64, value func(bucket, key, value []byte) error) error {
	if size < 4*boltPage {
		return fmt.Errorf("%d bytes are too few", size)
	}
	var newest boltMeta
	for i := range uint64(2) {
		page := make([]byte, boltPage)
		if _, err := file.ReadAt(page, int64(i)*boltPage); err != nil {
			return err
		}
		m, err := readBoltMeta(page)
		if err != nil {
			return fmt.Errorf("meta page %d: %w", i, err)
		}
		if i == 0 || m.txid > newest.txid {
			newest = m
		}
	}
	if newest.high > uint64(size)/boltPage {
		return fmt.Errorf("cut off: %d pages are in use, %d are there", newest.high, size/boltPage)
	}
	in := &inspector{file: file, high: newest.high, seen: map[uint64]bool{}, value: value}
	if err := in.page(newest.root, nil, nil, nil); err != nil {
		return err
	}
	if err := in.freeList(newest.free); err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if uint64(len(in.seen)) != newest.high-2 {
		return errors.New("a page is neither in use nor free")
	}
	return nil
}

func readBoltMeta(page []byte) (m boltMeta, err error) {
	order := binary.NativeEndian
	b := page[boltHeader:]
	sum := fnv.New64a()
	sum.Write(b[:56])
	switch {
	case order.Uint32(b) != boltMagic || order.Uint64(b[56:]) != sum.Sum64():
		return m, errors.New("checksum is wrong")
	case order.Uint32(b[4:]) != boltVersion || order.Uint32(b[8:]) != boltPage:
		return m, errors.New("other version or page size")
	}
	return boltMeta{root: order.Uint64(b[16:]), free: order.Uint64(b[32:]), high: order.Uint64(b[40:]), txid: order.Uint64(b[48:])}, nil
}

// page checks the page and all below it. All keys must lie in [lo, hi).
func (in *inspector) page(id uint64, bucket, lo, hi []byte) error {
	b, err := in.read(id)
	if err != nil {
		return err
	}
	if err := in.elements(b, bucket, lo, hi); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// read returns a page with its overflow and notes that it is in use.
func (in *inspector) read(id uint64) ([]byte, error) {
	if id < 2 || id >= in.high {
		return nil, fmt.Errorf("page %d does not exist", id)
	}
	order := binary.NativeEndian
	head := make([]byte, boltHeader)
	if _, err := in.file.ReadAt(head, int64(id)*boltPage); err != nil {
		return nil, err
	}
	overflow := uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != id || id+overflow >= in.high {
		return nil, fmt.Errorf("page %d: wrong header", id)
	}
	for p := id; p <= id+overflow; p++ {
		if in.seen[p] {
			return nil, fmt.Errorf("page %d is used twice", p)
		}
		in.seen[p] = true
	}
	b := make([]byte, (overflow+1)*boltPage)
	_, err := in.file.ReadAt(b, int64(id)*boltPage)
	return b, err
}

func (in *inspector) freeList(id uint64) error {
	b, err := in.read(id)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	count, list := uint64(order.Uint16(b[10:])), b[boltHeader:]
	if order.Uint16(b[8:]) != boltFree {
		return errors.New("unknown kind of page")
	}
	if count == 0xffff { // does not fit: the first word counts
		count, list = order.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return errors.New("wrong number of pages")
	}
	var last uint64
	for ; count > 0; count, list = count-1, list[8:] {
		free := order.Uint64(list)
		if free <= last || free < 2 || free >= in.high || in.seen[free] {
			return fmt.Errorf("page %d is not free", free)
		}
		in.seen[free], last = true, free
	}
	return nil
}

// elements checks a page image: one from the file, or an inline bucket.
func (in *inspector) elements(b, bucket, lo, hi []byte) error {
	order := binary.NativeEndian
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if flags != boltBranch && flags != boltLeaf {
		return errors.New("unknown kind")
	}
	if boltHeader+count*boltElement > len(b) || flags == boltBranch && count == 0 {
		return errors.New("wrong number of elements")
	}
	keys := make([][]byte, count+1)
	keys[count] = hi
	for i := range count {
		at := boltHeader + i*boltElement
		e := b[at:]
		pos, ksize := uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))
		if flags == boltLeaf {
			pos, ksize = uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:]))
		}
		start := uint64(at) + pos
		if start+ksize > uint64(len(b)) {
			return errors.New("element out of bounds")
		}
		keys[i] = b[start : start+ksize]
		if i == 0 && bytes.Compare(keys[0], lo) < 0 || i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 ||
			hi != nil && bytes.Compare(keys[i], hi) >= 0 {
			return errors.New("keys are out of order")
		}
	}
	for i := range count {
		e := b[boltHeader+i*boltElement:]
		if flags == boltBranch {
			if err := in.page(order.Uint64(e[8:]), bucket, keys[i], keys[i+1]); err != nil {
				return err
			}
			continue
		}
		start := uint64(boltHeader+i*boltElement) + uint64(order.Uint32(e[4:])) + uint64(len(keys[i]))
		vsize := uint64(order.Uint32(e[12:]))
		if start+vsize > uint64(len(b)) {
			return errors.New("value out of bounds")
		}
		if err := in.leaf(order.Uint32(e), bucket, keys[i], b[start:start+vsize]); err != nil {
			return err
		}
	}
	return nil
}

func (in *inspector) leaf(flags uint32, bucket, key, value []byte) error {
	if flags&^uint32(boltBucket) != 0 || (flags == boltBucket) != (bucket == nil) {
		return errors.New("unknown kind of value") // the root holds buckets, and buckets hold values
	}
	if flags != boltBucket {
		return in.value(bucket, key, value)
	}
	if len(value) < 16 || len(key) == 0 {
		return errors.New("bucket cut off")
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return in.page(root, key, nil, nil)
	}
	if len(value) < 16+boltHeader || binary.NativeEndian.Uint16(value[24:]) != boltLeaf {
		return errors.New("inline bucket is malformed")
	}
	return in.elements(value[16:], key, nil, nil)
}
