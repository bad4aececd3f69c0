package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// A transcript is what somebody would see who typed the story.
type transcript struct {
	mu    sync.Mutex
	w     io.Writer
	color bool
}

const (
	bold  = "\x1b[1m"
	faint = "\x1b[2m"
	plain = "\x1b[0m"
)

func (t *transcript) styled(style, text string) string {
	if !t.color {
		return text
	}
	return style + text + plain
}

// heading says what comes next.
func (t *transcript) heading(format string, args ...any) {
	t.lines("\n" + t.styled(faint, "# "+fmt.Sprintf(format, args...)))
}

// command shows what is typed on a host; after is what ends the line.
func (t *transcript) command(host string, argv []string, after string) {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = shellWord(word)
	}
	if argv[0] == "sh" {
		words = argv[2:] // sh -c LINE
	}
	t.lines(t.styled(faint, host+"$ ") + t.styled(bold, strings.Join(words, " ")+after))
}

// lines shows what came back.
func (t *transcript) lines(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text = strings.TrimRight(text, "\n"); text != "" {
		fmt.Fprintln(t.w, text)
	}
}

// shellWord quotes a word for a shell where that is needed.
func shellWord(word string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !safe(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
