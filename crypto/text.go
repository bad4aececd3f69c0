package crypto

import (
	"encoding/base32"
	"errors"
	"fmt"
)

// Keys and fingerprints are written in lower-case RFC 4648 base32 without
// padding. The alphabet of the RFC is kept and only its case is changed, so
// that any base32 tool reads the text after upper-casing it.
var textEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var errText = errors.New("not canonical base32")

// encodeText returns b as text.
func encodeText(b []byte) string { return textEncoding.EncodeToString(b) }

// decodeText fills dst from s, which must have exactly the length that dst
// needs. Either case is accepted; line breaks, padding and unused low bits
// that are not zero are not, so that each value has one spelling per case.
func decodeText(dst []byte, s string) error {
	if want := textEncoding.EncodedLen(len(dst)); len(s) != want {
		return fmt.Errorf("%d characters, want %d", len(s), want)
	}
	lower := lowerASCII(s)
	b, err := textEncoding.DecodeString(lower)
	if err != nil || len(b) != len(dst) || encodeText(b) != lower {
		return errText
	}
	copy(dst, b)
	return nil
}
