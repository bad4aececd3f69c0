package trust

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCleanText(t *testing.T) {
	for _, c := range []struct {
		in, out string
		max     int
	}{
		{"plain text", "plain text", 100},
		{"Grüße, 世界", "Grüße, 世界", 100},
		{"a\x1b[31mred\x1b[0m\a", "a[31mred[0m", 100},
		{"one\r\ntwo\tthree  four", "one two three four", 100},
		{"  edges  ", "edges", 100},
		{"abc\u202etxt.exe\u2066", "abctxt.exe", 100},
		{"zero\u200bwidth\u200d\ufeff", "zerowidth", 100},
		{"hidden\U000e0041\U000e0042\ufe0f", "hidden", 100},
		{"bad\xff\xfeutf8", "badutf8", 100},
		{"filler\u3164\u115f\u2800", "filler", 100},
		{"c1\u0085\u009b31m", "c131m", 100},
		{"private\ue000\U000f0000", "private", 100},
		{"e\u0301\u0301\u0301\u0301\u0301\u0301x", "e\u0301\u0301\u0301x", 100},
		{"世界世界", "世界", 8},
		{"ab cd", "ab", 3},
		{"", "", 10},
		{"\u2028line\u2029sep", "line sep", 100},
	} {
		if got := CleanText(c.in, c.max); got != c.out {
			t.Errorf("%q: %q, want %q", c.in, got, c.out)
		}
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("text \x1b[31m\u202e世界", 10)
	f.Add(strings.Repeat("e\u0301 ", 20), 33)
	f.Fuzz(func(t *testing.T, in string, max int) {
		max %= 1000
		out := CleanText(in, max)
		if len(out) > 0 && len(out) > max || !utf8.ValidString(out) || CleanText(out, max) != out {
			t.Fatalf("%q at %d: %q", in, max, out)
		}
		for _, r := range out {
			if invisible(r) || r < ' ' || r == 0x7f {
				t.Fatalf("%q leaves %q", in, r)
			}
		}
	})
}
