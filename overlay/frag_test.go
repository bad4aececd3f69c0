package overlay

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

func fragBody(id uint16, second bool, data []byte) []byte {
	return appendFrag(nil, id, second, data)[itemHeader:]
}

// The halves of many packets, shuffled, come together whole and once; what is
// malformed changes nothing.
func TestFragments(t *testing.T) {
	var f fragments
	r := rand.New(rand.NewPCG(1, 1))
	for round := range 50 {
		type piece struct {
			id     uint16
			second bool
		}
		var pieces []piece
		whole := map[uint16][]byte{}
		for i := range maxHalves {
			id := uint16(round*maxHalves + i)
			whole[id] = bytes.Repeat([]byte{byte(id), byte(id >> 8)}, 1+r.IntN(700))
			pieces = append(pieces, piece{id, false}, piece{id, true})
		}
		r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		for _, p := range pieces {
			w := whole[p.id]
			data := w[:len(w)/2]
			if p.second {
				data = w[len(w)/2:]
			}
			body := fragBody(p.id, p.second, data)
			got, lost := f.add(make([]byte, 0, 4096), body, time.Duration(round)*time.Second)
			clear(body) // the caller's buffer is used again
			if lost != 0 {
				t.Fatalf("round %d: %d lost", round, lost)
			}
			if got != nil {
				if !bytes.Equal(got, w) {
					t.Fatalf("packet %d: %d bytes, want %d", p.id, len(got), len(w))
				}
				delete(whole, p.id)
			}
		}
		if len(whole) != 0 || len(f.halves) != 0 {
			t.Fatalf("round %d: %d packets did not come, %d halves wait", round, len(whole), len(f.halves))
		}
	}
	for _, body := range [][]byte{nil, {0, 1}, {0, 1, 0}, {0, 1, 2, 9}, make([]byte, maxHalf+1)} {
		if whole, lost := f.add(nil, body, 0); whole != nil || lost != 1 || len(f.halves) != 0 {
			t.Errorf("%d bytes: whole %x, %d lost", len(body), whole, lost)
		}
	}
}

// At most 64 halves wait, for a second; all that is given up is counted.
func TestFragmentLimits(t *testing.T) {
	var f fragments
	lost := 0
	for i := range 3 * maxHalves {
		_, n := f.add(nil, fragBody(uint16(i), i%2 == 0, []byte{1}), 0)
		lost += n
	}
	if lost != 2*maxHalves || len(f.halves) != maxHalves {
		t.Errorf("%d lost, %d wait", lost, len(f.halves))
	}
	if whole, _ := f.add(nil, fragBody(0, false, []byte{2}), 0); whole != nil {
		t.Error("the oldest half still waited")
	}
	last := uint16(3*maxHalves - 1)
	if _, n := f.add(nil, fragBody(last, false, []byte{3}), 0); n != 1 {
		t.Errorf("a half that comes again replaces the first: %d lost", n)
	}
	if whole, n := f.add(nil, fragBody(last, true, []byte{4}), halfLife); !bytes.Equal(whole, []byte{3, 4}) || n != 0 {
		t.Errorf("after a second: %x, %d lost", whole, n)
	}
	if whole, n := f.add(nil, fragBody(1000, true, []byte{4}), halfLife+1); whole != nil || n != maxHalves-1 {
		t.Errorf("after more: %d lost", n)
	}
}

// A half waits in memory that is used again.
func TestAllocFragments(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var f fragments
	first, second := fragBody(1, false, make([]byte, 700)), fragBody(1, true, make([]byte, 700))
	dst := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		f.add(dst, first, 0)
		if whole, _ := f.add(dst, second, 0); whole == nil {
			t.Fatal("not whole")
		}
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// Two bodies that join give what they hold, and each is encoded again as it
// came.
func FuzzFrag(f *testing.F) {
	f.Add(fragBody(1, false, []byte("first")), fragBody(1, true, []byte("second")))
	f.Add(fragBody(1, true, []byte("x")), fragBody(1, false, []byte("y")))
	f.Add([]byte{0, 1, 2, 3}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var fr fragments
		_, bad := fr.add(nil, a, 0)
		whole, lost := fr.add(nil, b, 0)
		for _, body := range [][]byte{a, b} {
			if len(body) > 3 && len(body) <= maxHalf && body[2] <= 1 &&
				!bytes.Equal(fragBody(binary.BigEndian.Uint16(body), body[2] == 1, body[3:]), body) {
				t.Errorf("%x is not encoded again", body)
			}
		}
		if whole == nil {
			return
		}
		if bad != 0 || lost != 0 || !bytes.Equal(a[:2], b[:2]) || a[2] == b[2] {
			t.Fatalf("%x and %x joined", a, b)
		}
		first, second := a, b
		if a[2] == 1 {
			first, second = b, a
		}
		if want := append(bytes.Clone(first[3:]), second[3:]...); !bytes.Equal(whole, want) {
			t.Errorf("joined to %x, want %x", whole, want)
		}
	})
}
