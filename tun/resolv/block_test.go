package resolv

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

var (
	bob   = []Entry{{netip.MustParseAddr("fd50:494c:4f54::a91c:33f0"), []string{"bob.pilot.internal"}}}
	carol = []Entry{
		{netip.MustParseAddr("fd50:494c:4f54::1:2"), []string{"carol.pilot.internal", "carol"}},
		{netip.MustParseAddr("fd50:494c:4f54::3:4"), []string{"dave.pilot.internal"}},
	}
)

// originals are files as users have them.
var originals = map[string]string{
	"usual":            "127.0.0.1 localhost\n::1 localhost\n",
	"no line feed":     "127.0.0.1 localhost",
	"CRLF":             "127.0.0.1 localhost\r\n::1 localhost\r\n",
	"CRLF, not ended":  "127.0.0.1 localhost\r\n::1 localhost",
	"ends in CR":       "127.0.0.1 localhost\r",
	"empty":            "",
	"one line feed":    "\n",
	"many line feeds":  "a\n\n\n",
	"byte order mark":  "\xef\xbb\xbf127.0.0.1 localhost\n",
	"not UTF-8":        "\xff\xfe\x00",
	"our words in use": "# pilot: hello\n# pilot:\n",
}

func TestBlockText(t *testing.T) {
	t.Parallel()
	const want = "127.0.0.1 localhost\n" +
		"# pilot:a begin\n" +
		"fd50:494c:4f54::1:2 carol.pilot.internal carol # pilot:a\n" +
		"fd50:494c:4f54::3:4 dave.pilot.internal # pilot:a\n" +
		"# pilot:a end\n"
	if got := newBlock("a").set([]byte("127.0.0.1 localhost\n"), carol); string(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestBlocksLeaveNothing sets the blocks of three agents and removes them in
// every order: in between the lines of the user are there, at the end the file
// is as it was.
func TestBlocksLeaveNothing(t *testing.T) {
	t.Parallel()
	// "aa" and "a": the tag of one agent is part of the other's.
	blocks := []block{newBlock("aa"), newBlock("a"), newBlock("b.1-x")}
	for name, original := range originals {
		for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			file := []byte(original)
			for _, b := range blocks {
				file = b.set(file, bob)
				file = b.set(file, carol)
			}
			if !bytes.HasPrefix(file, []byte(original)) {
				t.Errorf("%s: the user's text has changed: %q", name, file)
			}
			for i, which := range order {
				for _, later := range order[i:] {
					if n := bytes.Count(file, []byte(" "+blocks[later].mark+"\n")); n != len(carol) {
						t.Errorf("%s: block %d has %d lines: %q", name, later, n, file)
					}
				}
				file = blocks[which].remove(file)
			}
			if string(file) != original {
				t.Errorf("%s, order %v: %q is left of %q", name, order, file, original)
			}
		}
	}
}

func TestBlockRepairs(t *testing.T) {
	t.Parallel()
	b := newBlock("a")
	const block = "# pilot:a begin\nfd50:494c:4f54::a91c:33f0 bob.pilot.internal # pilot:a\n# pilot:a end\n"
	for name, c := range map[string]struct{ file, set, removed string }{
		"stale block": {
			"x\n# pilot:a begin\n1::1 old # pilot:a\n1::2 older # pilot:a\n# pilot:a end\ny\n",
			"x\n" + block + "y\n", "x\ny\n",
		},
		"torn before the end": {
			"x\n# pilot:a begin\n1::1 old # pilot:a\n",
			"x\n" + block, "x\n",
		},
		"torn before the begin": {
			"x\n1::1 old # pilot:a\n# pilot:a end\ny\n",
			"x\n" + block + "y\n", "x\ny\n",
		},
		"twice": {
			"x\n# pilot:a begin\n# pilot:a end\ny\n# pilot:a begin\n1::1 old # pilot:a\n# pilot:a end\n",
			"x\n" + block + "y\n", "x\ny\n",
		},
		"a line of the user inside": {
			"x\n# pilot:a begin\n10.0.0.1 mine\n1::1 old # pilot:a\n# pilot:a end\n",
			"x\n" + block + "10.0.0.1 mine\n", "x\n10.0.0.1 mine\n",
		},
		"turned into CRLF": {
			"x\r\n# pilot:a begin\r\n1::1 old # pilot:a\r\n# pilot:a end\r\ny\r\n",
			"x\r\n" + block + "y\r\n", "x\r\ny\r\n",
		},
		"text after a joined block": {
			"x\n# pilot:a begin joined\n# pilot:a end\ny\n",
			"x\n" + strings.Replace(block, "begin", "begin joined", 1) + "y\n", "x\ny\n",
		},
		"last line feed lost": {
			"x\n# pilot:a begin\n1::1 old # pilot:a\n# pilot:a end",
			"x\n" + block, "x\n",
		},
		"joined to nothing": {
			"# pilot:a begin joined\n# pilot:a end\n",
			block, "",
		},
	} {
		if got := string(b.set([]byte(c.file), bob)); got != c.set {
			t.Errorf("%s: set gives %q, want %q", name, got, c.set)
		}
		if got := string(b.remove([]byte(c.file))); got != c.removed {
			t.Errorf("%s: remove gives %q, want %q", name, got, c.removed)
		}
	}
}

// FuzzBlock: whatever is in the file, the text outside our lines stays equal,
// and what two agents wrote goes away without a trace.
func FuzzBlock(f *testing.F) {
	for _, s := range originals {
		f.Add([]byte(s))
	}
	f.Add([]byte("x\n# pilot:a begin joined\n# pilot:b begin\n1::1 old # pilot:a\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		a, b := newBlock("a"), newBlock("b")
		once := a.set(file, bob)
		if twice := a.set(once, bob); !bytes.Equal(once, twice) {
			t.Errorf("set twice gives %q, once %q", twice, once)
		}
		before, _, _ := a.cut(file)
		if after, _, _ := a.cut(once); !bytes.Equal(bytes.TrimSuffix(after, []byte("\n")), bytes.TrimSuffix(before, []byte("\n"))) {
			t.Errorf("set leaves %q of %q", after, before)
		}
		if bytes.Contains(file, []byte("# pilot:")) {
			return
		}
		both := b.set(once, carol)
		if got := b.remove(a.remove(both)); !bytes.Equal(got, file) {
			t.Errorf("a, then b removed: %q is left of %q", got, file)
		}
		if got := a.remove(b.remove(both)); !bytes.Equal(got, file) {
			t.Errorf("b, then a removed: %q is left of %q", got, file)
		}
	})
}
