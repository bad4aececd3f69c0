package overlay

import (
	"bytes"
	"testing"

	"github.com/pilotnet/pilot/natt"
)

func TestNextItem(t *testing.T) {
	packet := datagram(us, 1, them, 2, 5).Complete()
	item := appendItem(nil, itemPing, make([]byte, pingBody))
	frame := append(append(bytes.Clone(packet), item...), 0, 0, 0)
	kind, p, rest, err := nextItem(frame)
	if kind != 0 || !bytes.Equal(p, packet) || err != nil {
		t.Fatalf("packet: %d %x %v", kind, p, err)
	}
	kind, p, rest, err = nextItem(rest)
	if kind != itemPing || len(p) != pingBody || err != nil {
		t.Fatalf("ping: %d %x %v", kind, p, err)
	}
	if _, p, _, err = nextItem(rest); p != nil || err != nil {
		t.Fatalf("padding: %x %v", p, err)
	}
	for name, b := range map[string][]byte{
		"padding that hides something": {0, 0, 0, 1},
		"kind in the padding nibble":   {0x05, 0, 0},
		"IPv6 header cut":              packet[:39],
		"IPv6 payload cut":             packet[:len(packet)-1],
		"item header cut":              {0x10, 0},
		"item body cut":                {0x10, 0, 2, 1},
	} {
		if _, _, _, err := nextItem(b); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, p, _, err := nextItem([]byte{0x45, 0, 0}); p == nil || err != nil {
		t.Errorf("an unknown item is skipped, not refused: %v", err)
	}
}

// What is accepted is encoded again to the same bytes, and nothing is read
// twice or lost.
func FuzzItems(f *testing.F) {
	f.Add(appendItem(datagram(us, 1, them, 2, 5).Complete(), itemKeepalive, nil))
	f.Add(append(appendFrag(nil, 7, true, []byte{1, 2, 3}), 0, 0))
	f.Add(appendChallenge(appendChallenge(nil, itemChallenge, natt.Token{1}, 1200), itemResponse, natt.Token{2}, 0))
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var again []byte
		for b := frame; ; {
			kind, item, rest, err := nextItem(b)
			if err != nil {
				return
			}
			if item == nil {
				again = append(again, b...)
				if !zeros(b) {
					t.Fatalf("%x taken for padding", b)
				}
				break
			}
			if kind == 0 {
				again = append(again, item...)
			} else {
				again = appendItem(again, kind, item)
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
		}
		if !bytes.Equal(again, frame) {
			t.Errorf("%x\nwas encoded again as\n%x", frame, again)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(appendChallenge(nil, itemChallenge, natt.Token{1, 2}, 1200)[itemHeader:])
	f.Fuzz(func(t *testing.T, body []byte) {
		token, size, ok := parseChallenge(body)
		if ok && !bytes.Equal(appendChallenge(nil, itemResponse, token, size)[itemHeader:], body) {
			t.Errorf("%x is not encoded again", body)
		}
	})
}
