package exchange

import (
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// A box is what one peer left here, finished or not.
type box struct {
	x     *Exchange
	fp    crypto.Fingerprint
	files shelf
	tus   http.Handler
	work  chan struct{} // one token for each request

	opening sync.Mutex

	commit sync.Mutex // held while an item comes to lie here or goes
	mu     sync.Mutex // guards the account; taken after commit
	stored int64      // bytes of what lies here, uploads with their full size
	items  int
	coming int64 // bytes that requests at work may still bring
}

// box opens the box of a peer.
func (x *Exchange) box(fp crypto.Fingerprint) (*box, error) {
	x.mu.Lock()
	b := x.boxes[fp]
	if b == nil {
		b = &box{x: x, fp: fp, work: make(chan struct{}, maxAtWork)}
		b.files = shelf{x: x, dir: b.path("files"), meta: b.path("meta"), lock: &b.commit}
		x.boxes[fp] = b
	}
	x.mu.Unlock()
	return b, b.open()
}

// open reads what is there, the first time.
func (b *box) open() error {
	b.opening.Lock()
	defer b.opening.Unlock()
	if b.tus != nil {
		return nil
	}
	for _, name := range []string{"files", "meta", "messages", "uploads"} {
		if err := b.x.root.MkdirAll(b.path(name), 0o700); err != nil {
			return err
		}
	}
	tus, err := b.openUploads()
	if err != nil {
		return err
	}
	b.count()
	b.tus = tus
	return nil
}

func (b *box) path(name string) string { return b.fp.String() + "/" + name }

// count makes the account anew from what is there.
func (b *box) count() {
	b.commit.Lock()
	defer b.commit.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stored, b.items = 0, 0
	for _, dir := range []string{"files", "messages"} {
		list, _ := fs.ReadDir(b.x.root.FS(), b.path(dir))
		for _, d := range list {
			if info, err := d.Info(); err == nil {
				b.stored += info.Size()
				b.items++
			}
		}
	}
	for _, u := range b.uploads() {
		b.stored += u.Size
		b.items++
	}
}

// A claim is a part of the quota that a request holds while it is at work.
type claim struct {
	b *box
	n int64
}

// claim takes n bytes of the quota.
func (b *box) claim(n int64) (*claim, error) {
	c := &claim{b: b}
	return c, c.more(n)
}

// more takes n bytes on top.
func (c *claim) more(n int64) error {
	b, quota := c.b, c.b.x.Quota
	b.mu.Lock()
	defer b.mu.Unlock()
	used := b.stored + b.coming
	fault := func(status int, format string, args ...any) *services.Error {
		e := services.Refuse(status, services.CodeQuota, format, args...)
		e.Quota, e.Used = quota, used
		return e
	}
	switch {
	case c.n+n > quota:
		return fault(http.StatusRequestEntityTooLarge, "%d bytes are more than the whole quota of %d bytes that this agent gives to a peer", c.n+n, quota)
	case used+n > quota:
		return fault(http.StatusInsufficientStorage, "the quota of %d bytes would be exceeded: %d are used, %d more are needed", quota, used, n).
			WithHint("the receiver makes room by taking files out of its inbox: pilotctl file rm inbox:PEER/NAME").Retry()
	case b.items >= maxItems:
		return fault(http.StatusInsufficientStorage, "there are %d files and messages of this peer already", b.items).
			WithHint("the receiver makes room by taking files out of its inbox").Retry()
	}
	if err := b.x.room(n); err != nil {
		return err
	}
	b.coming += n
	c.n += n
	return nil
}

// release gives back what was claimed.
func (c *claim) release() { c.settle(0, 0) }

// settle makes of a claim that many bytes and items that lie here. The caller
// holds commit unless these are none.
func (c *claim) settle(bytes int64, items int) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	b.coming -= c.n
	b.stored += bytes
	b.items += items
	c.n = 0
}

// usage is what a peer is told about its account.
func (b *box) usage() (used int64, items int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stored + b.coming, b.items
}

// expire drops uploads without progress.
func (b *box) expire(now time.Time) {
	for _, u := range b.uploads() {
		if now.Sub(u.Time) < uploadAge {
			continue
		}
		b.dropUpload(u.ID)
		b.x.Logger.Info("an unfinished upload was dropped", "peer", b.x.nameOf(b.fp), "name", u.Name, "bytes", u.Offset, "of", u.Size)
	}
	b.count()
}

func (b *box) dropUpload(id string) error {
	return errors.Join(ignoreMissing(b.x.root.Remove(b.path("uploads/"+id))), ignoreMissing(b.x.root.Remove(b.path("uploads/"+id+".info"))))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// validID says whether id is one of those that randomID makes.
func validID(id string) bool {
	return len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}
