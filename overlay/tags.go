package overlay

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pilotnet/pilot/crypto"
)

// A tagTable finds the pair states that a knock tag may belong to. A stranger's
// INIT costs one miss in it: no arithmetic, no allocation, no log line, no
// answer, and nearly always no lock and no more than one line of memory, since
// a filter of bits stands before the map.
type tagTable struct {
	mu    sync.RWMutex
	bits  atomic.Pointer[tagBits]
	slots map[uint64][]*knock
	all   map[*knock]struct{}
	epoch uint64
}

// A knock is one pair state that may receive INITs.
type knock struct {
	peer crypto.PublicKey
	slot [32]byte
	pair *crypto.Pair
}

// maxShared bounds the work for a tag that several peers share by accident.
const maxShared = 4

func newTagTable() *tagTable {
	t := &tagTable{slots: make(map[uint64][]*knock), all: make(map[*knock]struct{})}
	t.filter()
	return t
}

// tagBits has a bit for every tag in the table, and some for tags that were. Its
// length is a power of two; tags are random, so they need no hash.
type tagBits []atomic.Uint64

const tagBitsFree = 16 // at least so many bits for each tag, twice as many when it is made

func (b tagBits) word(tag uint64) *atomic.Uint64 { return &b[tag>>6&uint64(len(b)-1)] }

// filter makes the bits anew.
func (t *tagTable) filter() {
	size := 16
	for size*64 < 2*tagBitsFree*len(t.slots) {
		size *= 2
	}
	b := make(tagBits, size)
	for tag := range t.slots {
		b.word(tag).Or(1 << (tag & 63))
	}
	t.bits.Store(&b)
}

// find returns the pair states of a tag. The slice must not be changed.
func (t *tagTable) find(tag uint64) []*knock {
	if t.bits.Load().word(tag).Load()>>(tag&63)&1 == 0 {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.slots[tag]
}

func (t *tagTable) add(k *knock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[k] = struct{}{}
	for e, last := window(t.epoch); e <= last; e++ {
		t.put(k, e)
	}
}

// window is the first and the last epoch that is accepted in an epoch. A clock
// at 1970 has none before it.
func window(epoch uint64) (first, last uint64) {
	return epoch - min(epoch, crypto.EpochWindow), epoch + crypto.EpochWindow
}

func (t *tagTable) remove(k *knock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, k)
	for e, last := window(t.epoch); e <= last; e++ {
		t.drop(k, e)
	}
}

// advance moves the window of accepted epochs. It is called by the control loop
// once a minute and does nothing most of the time.
func (t *tagTable) advance(epoch uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch == t.epoch {
		return
	}
	oldFirst, oldLast := window(t.epoch)
	first, last := window(epoch)
	t.epoch = epoch
	for k := range t.all {
		for e := oldFirst; e <= oldLast; e++ {
			if e < first || e > last {
				t.drop(k, e)
			}
		}
		for e := first; e <= last; e++ {
			if e < oldFirst || e > oldLast {
				t.put(k, e)
			}
		}
	}
	t.filter()
}

func (t *tagTable) put(k *knock, epoch uint64) {
	tag := k.pair.InboundTag(epoch)
	if s := t.slots[tag]; len(s) < maxShared {
		t.slots[tag] = append(slices.Clip(s), k) // readers may hold s
	}
	b := *t.bits.Load()
	b.word(tag).Or(1 << (tag & 63))
	if len(t.slots)*tagBitsFree > len(b)*64 {
		t.filter()
	}
}

func (t *tagTable) drop(k *knock, epoch uint64) {
	tag := k.pair.InboundTag(epoch)
	s := slices.DeleteFunc(slices.Clone(t.slots[tag]), func(o *knock) bool { return o == k })
	if len(s) == 0 {
		delete(t.slots, tag)
	} else {
		t.slots[tag] = s
	}
}
