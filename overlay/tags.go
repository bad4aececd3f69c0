package overlay

import (
	"slices"
	"sync"

	"github.com/pilotnet/pilot/crypto"
)

// A tagTable finds the pair states that a knock tag may belong to. A stranger's
// INIT costs one miss in it: no arithmetic, no allocation, no log line, no
// answer.
type tagTable struct {
	mu    sync.RWMutex
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
	return &tagTable{slots: make(map[uint64][]*knock), all: make(map[*knock]struct{})}
}

// find returns the pair states of a tag. The slice must not be changed.
func (t *tagTable) find(tag uint64) []*knock {
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
}

func (t *tagTable) put(k *knock, epoch uint64) {
	tag := k.pair.InboundTag(epoch)
	if s := t.slots[tag]; len(s) < maxShared {
		t.slots[tag] = append(slices.Clip(s), k) // readers may hold s
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
