package exchange

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxName is the longest name of a file in bytes, that of most file systems.
const MaxName = 255

// CleanName returns the name in NFC, or says why it is not one. A name must be
// harmless wherever its file may be carried later, so the rules of all systems
// hold on each:
//
//   - no separator (/ and \), no control character, none of < > : " | ? *
//   - no invisible or direction-changing character, no space but U+0020, none at
//     either end, no code point that is private or not assigned
//   - no dot in front (hidden files, . and ..) and none at the end, no hyphen in
//     front (options), none of the device names of Windows
//   - nothing that turns into one of these under compatibility normalisation,
//     such as a full-width solidus or a one-dot leader
//   - no word that mixes Latin with Cyrillic or Greek letters, or those two: they
//     look alike, and only one of two such names is the one that was meant
func CleanName(name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("exchange: name: it is empty")
	case len(name) > 4*MaxName: // before any work on it
		return "", fmt.Errorf("exchange: name: it is longer than %d bytes", MaxName)
	case !utf8.ValidString(name):
		return "", fmt.Errorf("exchange: name: it is not UTF-8")
	}
	name = norm.NFC.String(name)
	if len(name) > MaxName {
		return "", fmt.Errorf("exchange: name: it is longer than %d bytes", MaxName)
	}
	for _, r := range name {
		if why := badRune(r); why != "" {
			return "", fmt.Errorf("exchange: name %.40q: it holds %s", name, why)
		}
	}
	for _, form := range []string{name, norm.NFKC.String(name)} {
		if why := badShape(form); why != "" {
			return "", fmt.Errorf("exchange: name %.40q: %s", name, why)
		}
	}
	if mixesScripts(name) {
		return "", fmt.Errorf("exchange: name %.40q: one word mixes letters of scripts that look alike", name)
	}
	return name, nil
}

func badRune(r rune) string {
	switch {
	case r == '/' || r == '\\':
		return "a path separator"
	case strings.ContainsRune(`<>:"|?*`, r):
		return fmt.Sprintf("%q, which some systems do not allow", r)
	case r == utf8.RuneError, unicode.Is(unicode.C, r):
		return "a control or invisible character"
	case r != ' ' && unicode.Is(unicode.Z, r), invisible(r):
		return "an unusual space or an invisible character"
	case !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z):
		return "a character that is not assigned"
	}
	return ""
}

// invisible letters and marks, which are in no class of their own.
func invisible(r rune) bool {
	return unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || r == 0x2800 || unicode.Is(unicode.Variation_Selector, r)
}

// badShape judges a name as a whole.
func badShape(name string) string {
	if strings.ContainsAny(name, "/\\\x00") {
		return "a character in it turns into a path separator"
	}
	first, last := name[0], name[len(name)-1]
	switch {
	case first == '.':
		return "it begins with a dot"
	case first == '-':
		return "it begins with a hyphen"
	case last == '.':
		return "it ends with a dot"
	case first == ' ' || last == ' ':
		return "it begins or ends with a space"
	}
	stem, _, _ := strings.Cut(strings.ToUpper(name), ".")
	stem = strings.TrimRight(stem, " ")
	switch stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$":
		return "Windows has a device of that name"
	}
	if len(stem) == 4 && (strings.HasPrefix(stem, "COM") || strings.HasPrefix(stem, "LPT")) && stem[3] >= '0' && stem[3] <= '9' {
		return "Windows has a device of that name"
	}
	return ""
}

// mixesScripts looks for a run of letters from more than one of three scripts.
func mixesScripts(name string) bool {
	seen := 0
	for _, r := range name {
		switch {
		case unicode.Is(unicode.Latin, r):
			seen |= 1
		case unicode.Is(unicode.Cyrillic, r):
			seen |= 2
		case unicode.Is(unicode.Greek, r):
			seen |= 4
		case !unicode.In(r, unicode.L, unicode.M):
			seen = 0
		}
		if seen&(seen-1) != 0 {
			return true
		}
	}
	return false
}
