package trust

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// CleanText makes text of a stranger fit for a terminal and for a model's
// context: valid UTF-8 only; no control, escape, bidirectional, zero-width,
// invisible, private or unassigned characters; runs of space become one; at
// most three marks on one letter; at most max bytes, cut between characters.
// What remains is still untrusted: quote it and say so. CleanText is idempotent.
func CleanText(s string, max int) string {
	var b strings.Builder
	marks, space := 0, false
	for i := 0; i < len(s) && b.Len() < max; {
		r, n := utf8.DecodeRuneInString(s[i:])
		bad := r == utf8.RuneError && n <= 1
		i += n
		if bad || invisible(r) {
			if r == '\n' || r == '\t' || r == '\r' || r == '\u2028' || r == '\u2029' {
				space = true
			}
			continue
		}
		if unicode.IsSpace(r) {
			space = true
			continue
		}
		if unicode.Is(unicode.M, r) {
			if marks++; marks > 3 || b.Len() == 0 || space {
				continue
			}
		} else {
			marks = 0
		}
		need := utf8.RuneLen(r)
		if space && b.Len() > 0 {
			need++
		}
		if b.Len()+need > max {
			break
		}
		if space && b.Len() > 0 {
			b.WriteByte(' ')
		}
		space = false
		b.WriteRune(r)
	}
	return b.String()
}

// invisible reports the characters that CleanText takes out: those that print
// nothing or move what is printed. Variation selectors and tags can carry whole
// hidden messages.
func invisible(r rune) bool {
	switch {
	case r >= 0xfe00 && r <= 0xfe0f, r >= 0xe0000 && r <= 0xe0fff: // variation selectors, tags
		return true
	case r == 0x115f, r == 0x1160, r == 0x3164, r == 0xffa0: // Hangul fillers
		return true
	case r == 0x2800, r == 0x034f, r == 0x180b, r == 0x180c, r == 0x180d, r == 0x180f, r == 0x17b4, r == 0x17b5:
		return true
	case unicode.In(r, unicode.Zs):
		return false
	case unicode.Is(unicode.M, r):
		return false
	}
	return !unicode.IsPrint(r)
}
