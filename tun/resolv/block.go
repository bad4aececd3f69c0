package resolv

import (
	"bytes"
	"fmt"
)

// madeNote is the first line of a file that did not exist before.
const madeNote = "# pilot: made this file, and removes it with the last name in it\n"

// block knows the lines of one tag. It is pure: bytes in, bytes out.
type block struct {
	mark string // ends each line of the block
}

func newBlock(tag string) block { return block{mark: "# pilot:" + tag} }

func (b block) begin(joined bool) string {
	if joined {
		return b.mark + " begin joined\n"
	}
	return b.mark + " begin\n"
}

// lineKind says what a line is to a block.
type lineKind uint8

const (
	foreign lineKind = iota
	own
	ownBegin
	ownBeginJoined
)

func (b block) kind(line []byte) lineKind {
	s := string(bytes.TrimRight(line, "\r\n"))
	switch {
	case s == b.mark+" begin joined":
		return ownBeginJoined
	case s == b.mark+" begin":
		return ownBegin
	case s == b.mark+" end", len(s) > len(b.mark) && s[len(s)-len(b.mark)-1:] == " "+b.mark:
		return own
	}
	return foreign
}

// cut returns file without the lines of the block, where the block began
// (-1 if there was none), and whether it was joined to a line without end.
func (b block) cut(file []byte) (rest []byte, at int, joined bool) {
	rest, at = make([]byte, 0, len(file)), -1
	for line := range bytes.Lines(file) {
		kind := b.kind(line)
		if kind == foreign {
			rest = append(rest, line...)
			continue
		}
		if at < 0 {
			at = len(rest)
			joined = kind == ownBeginJoined && at > 0 && rest[at-1] == '\n'
		}
	}
	return rest, at, joined
}

// remove returns file without the block, as if the block had never been in it.
func (b block) remove(file []byte) []byte {
	rest, at, joined := b.cut(file)
	if joined {
		rest = unjoin(rest, at)
	}
	if body, made := bytes.CutPrefix(rest, []byte(madeNote)); made && !bytes.Contains(body, []byte("# pilot:")) {
		return body
	}
	return rest
}

// unjoin settles what becomes of the line feed before at, which was put there
// for a block that has gone.
func unjoin(rest []byte, at int) []byte {
	follows := rest[at:]
	if len(follows) == 0 {
		return rest[:at-1]
	}
	line := follows
	if end := bytes.IndexByte(follows, '\n'); end >= 0 {
		line = follows[:end]
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if bytes.HasPrefix(line, []byte("# pilot:")) && bytes.HasSuffix(line, []byte(" begin")) {
		at += len(line)
		return append(append(rest[:at:at], " joined"...), rest[at:]...)
	}
	return rest
}

// set returns file with the block holding entries: where it stood before, or
// at the end.
func (b block) set(file []byte, entries []Entry) []byte {
	rest, at, joined := b.cut(file)
	if at < 0 {
		at = len(rest)
		if joined = at > 0 && rest[at-1] != '\n'; joined {
			rest = append(rest, '\n')
			at++
		}
	}
	var text bytes.Buffer
	text.Write(rest[:at])
	text.WriteString(b.begin(joined))
	for _, e := range entries {
		text.WriteString(e.Addr.String())
		for _, name := range e.Names {
			text.WriteString(" " + name)
		}
		fmt.Fprintf(&text, " %s\n", b.mark)
	}
	text.WriteString(b.mark + " end\n")
	text.Write(rest[at:])
	return text.Bytes()
}
