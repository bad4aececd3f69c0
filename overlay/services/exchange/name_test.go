package exchange

import (
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

func TestCleanName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"a", "report.pdf", "Übersicht 2026.txt", "отчёт_v2.pdf", "レポート（最終）.pdf", "a.tar.gz", "a-b_c+d,e;f=g@h", "x y", "com10", "console.log",
		"#1", "100%", "~", "α-test", "naïve (1).md", "½", "𝒳.txt", strings.Repeat("n", 255), "日本語", "עברית.txt", "a..b",
	} {
		if got, err := CleanName(name); err != nil || got != name {
			t.Errorf("%q: %q %v", name, got, err)
		}
	}
	if got, err := CleanName("A\u030a"); err != nil || got != "Å" {
		t.Errorf("%q %v", got, err)
	}
	for _, name := range []string{
		"", ".", "..", ".profile", "a/b", "/", `a\b`, "../../etc/passwd", "a\x00", "a\n", "a\x7f", "\x1b[31m", "a\u0085",
		"CON", "con", "nul.txt", "Aux.tar.gz", "COM1", "lpt9.x", "com\u00b9", "conin$", "con .txt",
		"a.", "a ", " a", "-rf", "a:b", "a*", "a?", "a|b", "<a>", `"a"`, "a\u202egpj.exe", "a\u200bb", "\ufeffa", "a\u2028b", "a\u00a0b", "a\u3000b",
		"a\uff0fb", "a\u2215\u2044\uff3cb", "\u2024\u2024", "\uff0e\uff0e", "\u2025", "\uff0drf", "\uff43\uff4f\uff4e",
		"p\u0430ypal.pdf", "\u0391dmin", "a\u2066b", "a\u00adb", "a\u3164b", "\u2800", "a\ufe0f", "\ue000", "\U000e0041", "\ud7ff", "\xff", "\xc0\xaf", "a\xffb",
		strings.Repeat("n", 256), strings.Repeat("é", 128), strings.Repeat("n", 100_000),
	} {
		if got, err := CleanName(name); err == nil {
			t.Errorf("%.60q is accepted as %q", name, got)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"report.pdf", "../x", "cafe\u0301", "a\u202eb", "CON.txt", "\uff0e\uff0e", "p\u0430y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := CleanName(s)
		if err != nil {
			return
		}
		again, err := CleanName(name)
		if err != nil || again != name {
			t.Errorf("%q becomes %q and then %q, %v", s, name, again, err)
		}
		if !norm.NFC.IsNormalString(name) || len(name) > MaxName || !utf8.ValidString(name) {
			t.Errorf("%q becomes %q", s, name)
		}
		for _, form := range []string{name, norm.NFKC.String(name), norm.NFD.String(name)} {
			if filepath.Base(form) != form || !filepath.IsLocal(form) || strings.ContainsAny(form, "/\\\x00\n\x1b") || form[0] == '.' || form[0] == '-' {
				t.Errorf("%q becomes %q, which can mean %q", s, name, form)
			}
		}
	})
}
