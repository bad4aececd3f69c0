package crypto

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

// testSessions returns the two ends of one session.
func testSessions() (a, b *Session) {
	k := Keys{Send: [32]byte{1}, Recv: [32]byte{2}}
	return NewSession(k, 10, 20), NewSession(Keys{Send: k.Recv, Recv: k.Send}, 20, 10)
}

func TestSessionRoundTrip(t *testing.T) {
	t.Parallel()
	a, b := testSessions()
	for i, n := range []int{0, 1, 15, 16, 17, 1280, MaxFrame - Overhead} {
		plaintext := bytes.Repeat([]byte{byte(i)}, n)
		frame, err := a.Seal([]byte("prefix"), plaintext, i%2 == 1)
		if err != nil || string(frame[:6]) != "prefix" || len(frame) != 6+n+Overhead {
			t.Fatalf("%d bytes: %d, %v", n, len(frame), err)
		}
		frame = frame[6:]
		if index, ok := DataIndex(frame); !ok || index != b.Local() {
			t.Fatalf("index %d, %t", index, ok)
		}
		got, partial, counter, err := b.Open([]byte("pre"), frame)
		if err != nil || partial != (i%2 == 1) || counter != uint64(i) || !bytes.Equal(got, append([]byte("pre"), plaintext...)) {
			t.Fatalf("%d bytes: %x, %t, %d, %v", n, got, partial, counter, err)
		}
		if _, _, _, err := b.Open(nil, frame); !errors.Is(err, ErrReplay) {
			t.Errorf("again: %v", err)
		}
		if _, _, _, err := a.Open(nil, frame); !errors.Is(err, ErrAuth) {
			t.Errorf("reflected: %v", err)
		}
	}
	if a.Sent() != 7 || a.Remote() != 20 || b.Sent() != 0 {
		t.Errorf("sent %d, remote %d, other side sent %d", a.Sent(), a.Remote(), b.Sent())
	}
	if _, err := a.Seal(nil, make([]byte, MaxFrame-Overhead+1), false); !errors.Is(err, ErrTooLong) || a.Sent() != 7 {
		t.Errorf("long plaintext: %v, sent %d", err, a.Sent())
	}
}

func TestSessionInPlace(t *testing.T) {
	t.Parallel()
	a, b := testSessions()
	plaintext := bytes.Repeat([]byte("0123456789abcdef"), 80)
	buf := make([]byte, Overhead+len(plaintext))
	copy(buf[HeaderSize:], plaintext)
	frame, err := a.Seal(buf[:0], buf[HeaderSize:HeaderSize+len(plaintext)], false)
	if err != nil || &frame[0] != &buf[0] || len(frame) != len(buf) {
		t.Fatalf("not in place: %v", err)
	}
	a2, _ := testSessions()
	if apart, _ := a2.Seal(nil, plaintext, false); !bytes.Equal(apart, frame) {
		t.Error("in place gives another frame")
	}
	got, _, _, err := b.Open(frame[HeaderSize:HeaderSize], frame)
	if err != nil || &got[0] != &buf[HeaderSize] || !bytes.Equal(got, plaintext) {
		t.Errorf("not opened in place: %v", err)
	}
}

// TestSessionBitFlips changes every bit and every length of a frame. None is
// accepted, and the receiver is as if it had never seen them.
func TestSessionBitFlips(t *testing.T) {
	t.Parallel()
	a, b := testSessions()
	frame, err := a.Seal(nil, []byte("some packet"), true)
	if err != nil {
		t.Fatal(err)
	}
	before := b.recv.window
	for bit := range len(frame) * 8 {
		bad := bytes.Clone(frame)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, _, _, err := b.Open(nil, bad); err == nil {
			t.Fatalf("bit %d flipped: accepted", bit)
		}
	}
	for n := range frame {
		if _, _, _, err := b.Open(nil, frame[:n]); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
	if _, _, _, err := b.Open(nil, append(bytes.Clone(frame), 0)); err == nil {
		t.Fatal("one byte more: accepted")
	}
	if b.recv.window != before {
		t.Fatal("a forged frame moved the window")
	}
	if _, _, _, err := b.Open(nil, frame); err != nil {
		t.Fatalf("the real frame after the forged ones: %v", err)
	}
}

func TestSessionWipe(t *testing.T) {
	t.Parallel()
	a, b := testSessions()
	frame, _ := a.Seal(nil, nil, false)
	a.Wipe()
	b.Wipe()
	if _, err := a.Seal(nil, nil, false); !errors.Is(err, ErrClosed) {
		t.Errorf("seal: %v", err)
	}
	if _, _, _, err := b.Open(nil, frame); !errors.Is(err, ErrClosed) {
		t.Errorf("open: %v", err)
	}
}

// TestSessionLimit lets 64 senders run into the message limit: each counter is
// given out once, none at or beyond the limit, and it stays there.
func TestSessionLimit(t *testing.T) {
	t.Parallel()
	const senders, each, left = 64, 100, 1000
	a, b := testSessions()
	a.send.counter.Store(RejectAfterMessages - left)
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := make(map[uint64]bool)
	refused := 0
	for range senders {
		wg.Go(func() {
			for range each {
				frame, err := a.Seal(nil, []byte("x"), false)
				if err != nil {
					if !errors.Is(err, ErrLimit) {
						t.Error(err)
					}
					mu.Lock()
					refused++
					mu.Unlock()
					continue
				}
				_, _, counter, err := b.Open(nil, frame)
				if err != nil && !errors.Is(err, ErrReplay) { // too far behind the newest
					t.Error(err)
				}
				mu.Lock()
				if err == nil && seen[counter] || counter >= RejectAfterMessages {
					t.Errorf("counter %d: twice or beyond the limit", counter)
				}
				seen[counter] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != left || refused != senders*each-left {
		t.Errorf("%d sealed, %d refused, want %d, %d", len(seen), refused, left, senders*each-left)
	}
	if a.Sent() != RejectAfterMessages || a.send.counter.Load() != RejectAfterMessages {
		t.Errorf("counter stands at %d", a.send.counter.Load())
	}
	if _, err := a.Seal(nil, nil, false); !errors.Is(err, ErrLimit) {
		t.Errorf("after the limit: %v", err)
	}
}

// TestSessionRefusesHighCounters: an authentic frame beyond the limit, which
// only a broken sender makes, is refused too.
func TestSessionRefusesHighCounters(t *testing.T) {
	t.Parallel()
	a, b := testSessions()
	for counter, want := range map[uint64]error{RejectAfterMessages - 1: nil, RejectAfterMessages: ErrLimit, 1<<64 - 1: ErrLimit} {
		frame := make([]byte, HeaderSize)
		putDataHeader(frame, 20, counter, false)
		frame = a.send.seal(a.send.aead.Load(), frame, counter, nil, frame)
		if _, _, _, err := b.Open(nil, frame); !errors.Is(err, want) {
			t.Errorf("counter %d: %v, want %v", counter, err, want)
		}
	}
}

// TestSessionConcurrent: 64 senders, and two receivers of every frame. No
// nonce is used twice, and exactly one receiver gets each frame.
func TestSessionConcurrent(t *testing.T) {
	t.Parallel()
	const senders, each = 64, 60 // in all less than the window
	a, b := testSessions()
	var mu sync.Mutex
	var wg sync.WaitGroup
	opened := make(map[uint64]int)
	for range senders {
		wg.Go(func() {
			for range each {
				frame, err := a.Seal(nil, []byte("payload"), false)
				if err != nil {
					t.Error(err)
				}
				for range 2 {
					got, _, counter, err := b.Open(nil, frame)
					switch {
					case err == nil && string(got) == "payload":
						mu.Lock()
						opened[counter]++
						mu.Unlock()
					case !errors.Is(err, ErrReplay):
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(opened) != senders*each || a.Sent() != senders*each {
		t.Errorf("%d frames opened, %d sent, want %d", len(opened), a.Sent(), senders*each)
	}
	for counter, n := range opened {
		if n != 1 || counter >= senders*each {
			t.Errorf("counter %d opened %d times", counter, n)
		}
	}
}

func TestSessionDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	a, b := testSessions()
	x, y := testSessions()
	buf := make([]byte, 1280+Overhead)
	if n := testing.AllocsPerRun(2000, func() {
		frame, err := a.Seal(buf[:0], buf[HeaderSize:HeaderSize+1280], true)
		if err == nil {
			_, _, _, err = b.Open(frame[HeaderSize:HeaderSize], frame)
		}
		if err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("Seal and Open in place: %v allocations", n)
	}
	// Refusals come in floods and must not allocate either.
	frame, _ := x.Seal(nil, []byte("x"), false)
	if _, _, _, err := y.Open(nil, frame); err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(frame)
	forged[HeaderSize] ^= 1
	out := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(2000, func() {
		if _, _, _, err := y.Open(out, frame); !errors.Is(err, ErrReplay) {
			t.Error(err)
		}
		if _, _, _, err := y.Open(out, forged); !errors.Is(err, ErrAuth) {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("refusals: %v allocations", n)
	}
}

func TestReplayWindow(t *testing.T) {
	t.Parallel()
	const w = ReplayWindow
	type step struct {
		counter uint64
		want    bool
	}
	for name, steps := range map[string][]step{
		"in order":     {{0, true}, {1, true}, {1, false}, {0, false}, {2, true}},
		"backwards":    {{9, true}, {8, true}, {7, true}, {7, false}, {9, false}, {0, true}, {0, false}},
		"edge":         {{w, true}, {0, true}, {0, false}, {w + 1, true}, {0, false}, {1, true}, {1, false}},
		"start high":   {{1 << 40, true}, {1<<40 - w - 1, false}, {1<<40 - w, true}, {0, false}},
		"jump":         {{0, true}, {w * 3, true}, {w * 2, true}, {w*2 - 1, false}, {w * 3, false}, {w*3 - 63, true}},
		"one ring":     {{5, true}, {5 + windowSize*blockBits, true}, {5, false}, {5 + blockBits - 1, false}, {5 + blockBits, true}},
		"block border": {{63, true}, {64, true}, {63, false}, {128, true}, {127, true}, {65, true}, {127, false}},
		"top":          {{1<<64 - 2, true}, {1<<64 - 2, false}, {1<<64 - 3, true}, {0, false}},
	} {
		var win replayWindow
		for i, s := range steps {
			if got := win.take(s.counter); got != s.want {
				t.Errorf("%s: step %d: take(%d) = %t", name, i, s.counter, got)
			}
		}
	}
}

// TestReplayWindowAgainstSet compares the ring with a plain set of counters.
func TestReplayWindowAgainstSet(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		var w replayWindow
		seen := make(map[uint64]bool)
		newest := uint64(0)
		for i := range 40000 {
			c := newest - min(newest, r.Uint64N(ReplayWindow+300))
			switch r.IntN(8) {
			case 0:
				c = newest + r.Uint64N(4)
			case 1:
				c = newest + r.Uint64N(100)
			case 2:
				if r.IntN(400) == 0 {
					c = newest + r.Uint64N(3*ReplayWindow)
				}
			}
			fresh := !seen[c] && (c > newest || newest-c <= ReplayWindow)
			if got := w.take(c); got != fresh {
				t.Fatalf("seed %d, step %d: take(%d) = %t with newest %d", seed, i, c, got, newest)
			}
			seen[c] = true
			newest = max(newest, c)
		}
	}
}

func TestTransport(t *testing.T) {
	t.Parallel()
	k := Keys{Send: [32]byte{1}, Recv: [32]byte{2}}
	a, b := NewTransport(k), NewTransport(Keys{Send: k.Recv, Recv: k.Send})
	first, err := a.Seal([]byte("pre"), []byte("first"))
	if err != nil || len(first) != 3+5+TransportOverhead {
		t.Fatal(len(first), err)
	}
	first = first[3:]
	buf := append(make([]byte, 8, 64), "second"...)
	second, err := a.Seal(buf[:0], buf[8:])
	if err != nil || &second[0] != &buf[0] {
		t.Fatal("not in place", err)
	}
	if got, err := b.Open(second[8:8], bytes.Clone(second)); err != nil || string(got) != "second" {
		t.Errorf("%q, %v", got, err)
	}
	for bit := range len(first) * 8 {
		bad := bytes.Clone(first)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := b.Open(nil, bad); err == nil {
			t.Fatalf("bit %d flipped: accepted", bit)
		}
	}
	for n := range first {
		if _, err := b.Open(nil, first[:n]); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
	if got, err := b.Open(nil, first); err != nil || string(got) != "first" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := b.Open(nil, first); !errors.Is(err, ErrReplay) {
		t.Errorf("again: %v", err)
	}
	if _, err := a.Open(nil, first); !errors.Is(err, ErrAuth) {
		t.Errorf("reflected: %v", err)
	}
	if _, err := a.Seal(nil, make([]byte, MaxTransport+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("long: %v", err)
	}
	a.send.counter.Store(RejectAfterMessages)
	if _, err := a.Seal(nil, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("limit: %v", err)
	}
	b.Wipe()
	if _, err := b.Seal(nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("wiped: %v", err)
	}
}
