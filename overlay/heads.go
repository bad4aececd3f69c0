package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// Heads find out that this agent runs on a restored backup; package trust says how.
// After changes of trust, home servers and connected peers are left our signed head,
// and they show back what they kept. An item of kind itemHead is either its sender's
// own head, or, shown back, the receiver's.

const (
	headPause = time.Second            // between two heads of ours
	headLazy  = 3 * time.Second        // a change that takes nothing back waits: mail goes first
	headEvery = 200 * time.Millisecond // a peer's heads, and ours from it, are looked at this often
	headWrite = time.Minute            // a peer's head is written this often
)

// heads is what the loop knows of our own head.
type heads struct {
	kick, urgent chan struct{}
	signed       []byte // nil: not shown in this run yet, or suspended
	count        uint64
}

func newHeads() heads { return heads{kick: make(chan struct{}, 1), urgent: make(chan struct{}, 1)} }

// tellHead has our head shown to others soon, if it is new; at once if something was
// taken back.
func (l *loop) tellHead(urgent bool) {
	c := l.heads.kick
	if urgent {
		c = l.heads.urgent
	}
	select {
	case c <- struct{}{}:
	default:
	}
}

// runHeads signs our head after changes and hands it to the loop.
func (l *loop) runHeads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.heads.urgent:
		case <-l.heads.kick:
			select {
			case <-ctx.Done():
				return nil
			case <-l.heads.urgent:
			case <-time.After(headLazy):
			}
		}
		signed, err := l.store.ShowHead()
		if err != nil {
			l.log.Error("cannot write state", "err", err)
		} else if signed != nil {
			l.post(func(now instant) { l.showHead(now, signed) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(headPause):
		}
	}
}

// showHead leaves a new head with all home servers and with the peers that are connected.
func (l *loop) showHead(now instant, signed []byte) {
	h, err := crypto.ParseHead(signed)
	if err != nil || h.Count < l.heads.count || bytes.Equal(signed, l.heads.signed) {
		return
	}
	l.heads.signed, l.heads.count = signed, h.Count
	for _, home := range l.servers {
		if home.head.held < h.Count {
			home.head.due = true
			home.advance(now)
		}
	}
	for _, k := range l.links {
		k.tellHead()
	}
}

// homeHead is what is known of a home server and our head.
type homeHead struct {
	due  bool
	held uint64 // the count that the server keeps; 0: it was not asked yet in this run
	deaf bool   // it closed the channel on the question; not asked before the next registration
}

// wanted says that the next control channel is to exchange heads.
func (h *homeHead) wanted() bool { return !h.deaf && (h.due || h.held == 0) }

// exchanged takes the outcome of an exchange. A head that became due while it was under way
// still is.
func (h *homeHead) exchanged(did controlWork, err error) {
	var broke *headError
	switch {
	case errors.As(err, &broke):
		h.deaf = true
	case err == nil:
		h.held = max(h.held, did.held)
	default:
		h.due = h.due || did.headDue
	}
}

// A headError is a channel that broke on the question for our head. The server may
// not know it.
type headError struct{ err error }

func (e *headError) Error() string { return fmt.Sprintf("head: %v", e.err) }
func (e *headError) Unwrap() error { return e.err }

// exchangeHead asks a home server for our head, judges it, and leaves the present
// one there. It runs beside the loop and returns the count that the server keeps now.
func (l *loop) exchangeHead(ctx context.Context, c *relay.Control, by string) (held uint64, err error) {
	kept, err := c.Head(ctx, nil)
	if err != nil {
		return 0, l.headFailed(err)
	}
	if kept != nil {
		l.judge(kept, by)
	}
	signed, err := l.store.ShowHead()
	if err != nil || signed == nil { // the disk is full, or we are suspended: others keep what they have
		if err != nil {
			l.log.Error("cannot write state", "err", err)
		}
		return 0, nil
	}
	if kept, err = c.Head(ctx, signed); err != nil {
		return 0, l.headFailed(err)
	}
	if !bytes.Equal(kept, signed) {
		l.judge(kept, by)
	}
	h, err := crypto.ParseHead(kept)
	if err != nil {
		return 0, nil // judge has said so
	}
	return h.Count, nil
}

// headFailed tells a refusal, after which the channel goes on, from a channel that broke.
func (l *loop) headFailed(err error) error {
	for _, refusal := range []error{relay.ErrRefused, relay.ErrNotFound, relay.ErrFailed, relay.ErrBusy} {
		if errors.Is(err, refusal) {
			l.log.Info("a server does not keep our head", "err", err)
			return nil
		}
	}
	return &headError{err}
}

// judge takes a head of ours that somebody shows back. It writes, so it runs beside the loop.
func (l *loop) judge(signed []byte, by string) {
	before := l.store.Head()
	caught, err := l.store.SeenHead(signed, by)
	switch {
	case err != nil:
		l.log.Warn("something else than our head was shown back", "by", by, "err", err)
	case caught:
		l.post(l.suspend)
	case l.store.Head() != before:
		l.tellHead(false) // a store that began anew went above it
	}
}

// suspend ends all links: this state may hold trust that was taken back.
func (l *loop) suspend(now instant) {
	s, ok := l.store.Suspended()
	if !ok {
		return
	}
	l.heads.signed, l.heads.count = nil, 0
	l.log.Error("this state is older than what others were told: trust is suspended",
		"by", s.By, "told", s.Seen, "here", s.Ours, "at", s.Made, "do", suspendedHint)
	for key := range l.links {
		l.refresh(now, key)
	}
}

// tellHead shows our head in the present session, once.
func (k *link) tellHead() {
	own := &k.loop.heads
	if own.signed == nil || k.heads.told >= own.count || k.peer.tx.Load() == nil {
		return
	}
	k.heads.told = own.count
	k.item(itemHead, own.signed)
}

// linkHeads is what a link knows of heads.
type linkHeads struct {
	told    uint64 // our count that the present session was told
	loaded  bool
	kept    []byte // the peer's newest head; nil: none
	dirty   bool   // it is newer than on disk
	written time.Duration
	replied bool // it was shown back in the present session
	heard   [2]time.Duration
}

func (h *linkHeads) count() uint64 {
	if h.kept == nil {
		return 0
	}
	return binary.BigEndian.Uint64(h.kept[8:])
}

func headKey(k crypto.PublicKey) string { return "head/" + k.Fingerprint().String() }

// loadHead reads the head that an earlier run kept of the peer.
func (k *link) loadHead() {
	if k.heads.loaded {
		return
	}
	k.heads.loaded = true
	if b, ok := k.loop.store.GetMeta(headKey(k.key)); ok {
		if h, err := crypto.ParseHead(b); err == nil && h.Key == k.key {
			k.heads.kept = b
		}
	}
}

// greetHead tells a new session our head, and the peer its own if that in its INIT,
// 0 for none, is behind what we keep.
func (k *link) greetHead(claimed uint64) {
	k.loadHead()
	k.heads.told, k.heads.replied = 0, false
	k.tellHead()
	if claimed != 0 && claimed < k.heads.count() {
		k.showBack()
	}
}

// showBack shows the peer what we keep of it, once a session.
func (k *link) showBack() {
	if k.heads.kept == nil || k.heads.replied || k.peer.tx.Load() == nil {
		return
	}
	k.heads.replied = true
	k.item(itemHead, k.heads.kept)
}

// shownHead takes a head from the peer: its own, or ours that it kept.
func (k *link) shownHead(now instant, body []byte) {
	if len(body) != crypto.HeadSize {
		return
	}
	l, kind := k.loop, 0
	key := crypto.PublicKey(body[32:64])
	if key == l.id.Key.Public() {
		kind = 1
	} else if key != k.key {
		return
	}
	if at := k.heads.heard[kind]; at != 0 && now.boot-at < headEvery {
		return
	}
	k.heads.heard[kind] = now.boot
	if kind == 1 {
		shown, by := bytes.Clone(body), k.book.Name
		l.jobs.do(func(context.Context) { l.judge(shown, by) })
		return
	}
	h, err := crypto.ParseHead(body)
	if err != nil {
		return
	}
	k.loadHead()
	if !bytes.Equal(k.heads.kept, body) {
		k.showBack()
	}
	if k.heads.kept == nil || h.Count > k.heads.count() {
		k.heads.kept, k.heads.dirty = bytes.Clone(body), true
		k.keepHead(now, false)
	}
}

// keepHead writes the peer's head if it is new, unless that was done a moment ago.
func (k *link) keepHead(now instant, force bool) {
	if !k.heads.dirty || !force && k.heads.written != 0 && now.boot-k.heads.written < headWrite {
		return
	}
	k.heads.dirty, k.heads.written = false, now.boot
	key, b := headKey(k.key), k.heads.kept
	k.loop.write(func() error { return k.loop.store.PutMeta(key, b) })
}
