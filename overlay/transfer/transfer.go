// Package transfer is the file in which an agent moves from one machine to
// another: its identity and state, sealed with a passphrase.
//
// This comment is the specification. Integers are big-endian.
//
//	 0   8  "PILOTEXP"
//	 8   1  version 1
//	 9   1  key derivation 1: Argon2id (RFC 9106)
//	10   2  zero
//	12   4  passes, 1 to 16
//	16   4  memory in KiB, 8 to 1048576
//	20   4  lanes, 1 to 16
//	24  16  salt
//	40   8  length of what is sealed
//	48  16  check
//	64      sealed
//
// Argon2id makes 48 bytes of the passphrase and the salt. The last 16 are the check:
// they tell a wrong passphrase from a damaged file, and cost who guesses no less than
// the seal itself would. The first 32 are the key of AES-256-GCM, which seals under
// a nonce of zeros, since salt and so key are new for every file; bytes 0 to 63 are the
// additional data. What is sealed is a sequence of files in ascending order of their names:
//
//	length of name 1 | name | length of content 4 | content
//
// A name has 1 to 64 letters, digits, dots, hyphens and underscores, and does not
// begin with a dot.
package transfer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/crypto/argon2"
)

// Causes that a caller can tell apart.
var (
	ErrPassphrase = errors.New("wrong passphrase")
	ErrCut        = errors.New("the file is cut off or has something after its end")
	ErrDamaged    = errors.New("the file is damaged")
	ErrForeign    = errors.New("not an exported agent")
	ErrNewer      = errors.New("exported by a newer version")
)

const (
	magic      = "PILOTEXP"
	version    = 1
	argon2id   = 1
	headerSize = 64
	saltSize   = 16
	checkSize  = 16
	keySize    = 32

	// MaxSize bounds what is exported and imported.
	MaxSize = 256 << 20
)

// cost is what a passphrase costs to try, 64 MiB and some tenths of a second.
var cost = header{passes: 3, memory: 64 << 10, lanes: 4}

type header struct {
	passes, memory, lanes uint32
	salt                  [saltSize]byte
	length                uint64
	check                 [checkSize]byte
}

func (h header) append(b []byte) []byte {
	b = append(append(b, magic...), version, argon2id, 0, 0)
	for _, n := range []uint32{h.passes, h.memory, h.lanes} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint64(append(b, h.salt[:]...), h.length)
	return append(b, h.check[:]...)
}

func parseHeader(b []byte) (header, error) {
	switch {
	case len(b) < len(magic) || string(b[:len(magic)]) != magic:
		return header{}, ErrForeign
	case len(b) < headerSize:
		return header{}, ErrCut
	case b[8] > version || b[8] == version && b[9] > argon2id:
		return header{}, ErrNewer
	case b[8] != version || b[9] != argon2id || b[10]|b[11] != 0:
		return header{}, ErrDamaged
	}
	h := header{
		passes: binary.BigEndian.Uint32(b[12:]), memory: binary.BigEndian.Uint32(b[16:]), lanes: binary.BigEndian.Uint32(b[20:]),
		salt: [saltSize]byte(b[24:]), length: binary.BigEndian.Uint64(b[40:]), check: [checkSize]byte(b[48:]),
	}
	if h.passes < 1 || h.passes > 16 || h.memory < 8 || h.memory > 1<<20 || h.lanes < 1 || h.lanes > 16 || h.length > MaxSize {
		return header{}, ErrDamaged
	}
	return h, nil
}

// derive returns the cipher of a passphrase, and its check.
func (h header) derive(passphrase []byte) (cipher.AEAD, [checkSize]byte, error) {
	made := argon2.IDKey(passphrase, h.salt[:], h.passes, h.memory, uint8(h.lanes), keySize+checkSize)
	block, err := aes.NewCipher(made[:keySize])
	if err != nil {
		return nil, [checkSize]byte{}, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, [checkSize]byte(made[keySize:]), err
}

// Seal makes the file that holds these files.
func Seal(files map[string][]byte, passphrase []byte) ([]byte, error) {
	return seal(cost, files, passphrase)
}

func seal(h header, files map[string][]byte, passphrase []byte) ([]byte, error) {
	plain, err := appendFiles(nil, files)
	if err != nil {
		return nil, err
	}
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(h.salt[:])
	aead, check, err := h.derive(passphrase)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	h.length, h.check = uint64(len(plain)+aead.Overhead()), check
	if h.length > MaxSize {
		return nil, fmt.Errorf("transfer: the agent's state has %d bytes, %d is the most", len(plain), MaxSize)
	}
	b := h.append(make([]byte, 0, headerSize+int(h.length)))
	return aead.Seal(b, make([]byte, aead.NonceSize()), plain, b[:headerSize]), nil
}

// Open returns the files that Seal was given, or says which of the causes above it is.
func Open(b, passphrase []byte) (map[string][]byte, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	if uint64(len(b)-headerSize) != h.length {
		return nil, fmt.Errorf("transfer: %w", ErrCut)
	}
	aead, check, err := h.derive(passphrase)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	if subtle.ConstantTimeCompare(check[:], h.check[:]) != 1 {
		return nil, fmt.Errorf("transfer: %w", ErrPassphrase)
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), b[headerSize:], b[:headerSize])
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", ErrDamaged)
	}
	files, err := parseFiles(plain)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	return files, nil
}

const maxName = 64

func validName(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func appendFiles(b []byte, files map[string][]byte) ([]byte, error) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !validName(name) || len(files[name]) > MaxSize {
			return nil, fmt.Errorf("transfer: file %.80q cannot be exported", name)
		}
		b = append(append(b, byte(len(name))), name...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(files[name])))
		b = append(b, files[name]...)
	}
	return b, nil
}

func parseFiles(b []byte) (map[string][]byte, error) {
	files := map[string][]byte{}
	last := ""
	for len(b) > 0 {
		n := int(b[0])
		if len(b) < 1+n+4 {
			return nil, ErrDamaged
		}
		name := string(b[1 : 1+n])
		size := binary.BigEndian.Uint32(b[1+n:])
		b = b[1+n+4:]
		if !validName(name) || name <= last || uint64(size) > uint64(len(b)) {
			return nil, ErrDamaged
		}
		files[name], b, last = b[:size:size], b[size:], name
	}
	return files, nil
}
