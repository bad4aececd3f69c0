package overlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// A connection that is closed and not yet acknowledged is found in the kernel's list,
// if it is of our address.
func TestClosing(t *testing.T) {
	own := netip.MustParseAddr("fd50:494c:4f54::1a2b:3c4d")
	written := "4C4950FD0000544F000000004D3C2B1A"
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		written = "FD50494C4F5400000000000000001A2B3C4D"
	}
	const head = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(address, state string) string {
		return fmt.Sprintf("   0: %s:0050 4C4950FD0000544F00000000FFFFFFFF:C000 %s 00001000:00000000 01:00000014 00000000     0        0 0 2 0000000000000000\n", address, state)
	}
	other := "00000000000000000000000001000000"
	for _, c := range []struct {
		list string
		want bool
	}{
		{"", false}, {head, false}, {head + line(written, "01"), false}, {head + line(written, "06") + line(written, "0A"), false},
		{head + line(other, "04"), false}, {head + line(other, "01") + line(written, "04"), true},
		{line(written, "09"), true}, {line(written, "0B"), true}, {"a\nb c d e\n", false},
	} {
		if got := closing(strings.NewReader(c.list), own); got != c.want {
			t.Errorf("%v, want %v of:\n%s", got, c.want, c.list)
		}
	}
}
