package overlay

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
)

const socketList = "/proc/net/tcp6"

// unsent says whether the kernel has connections of an address that programs have
// closed, with bytes that the other side has not acknowledged.
func unsent(own netip.Addr) bool {
	f, err := os.Open(socketList)
	if err != nil {
		return false
	}
	defer f.Close()
	return closing(f, own)
}

// closing looks for the states of proc(5) in which our end of a connection (RFC 9293)
// is not acknowledged: FIN-WAIT-1, LAST-ACK and CLOSING.
func closing(list io.Reader, own netip.Addr) bool {
	states := []string{"04", "09", "0B"}
	address := socketAddress(own)
	for lines := bufio.NewScanner(list); lines.Scan(); {
		// number, local address and port, remote ones, state, ...
		words := strings.Fields(lines.Text())
		if len(words) > 3 && strings.HasPrefix(words[1], address) && slices.Contains(states, words[3]) {
			return true
		}
	}
	return false
}

// socketAddress is how the kernel writes an address: four words in the order of the
// machine's bytes.
func socketAddress(a netip.Addr) string {
	b := a.As16()
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	return strings.ToUpper(hex.EncodeToString(b[:])) + ":"
}
