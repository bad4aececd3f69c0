package resolv

import (
	"slices"
	"strings"
	"testing"
)

// FuzzResolvConf: what is read of a file like resolv.conf is read of one that says
// only that.
func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("# by hand\nnameserver 192.0.2.1\nnameserver fe80::1%eth0 # near\noptions edns0 trust-ad\nsearch example\n"))
	f.Add([]byte("nameserver\noptions\tndots:2\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := parseResolvConf(text)
		var again strings.Builder
		for _, s := range c.servers {
			again.WriteString("nameserver " + s + "\n")
		}
		again.WriteString("options " + strings.Join(c.options, " ") + "\n")
		if d := parseResolvConf([]byte(again.String())); !slices.Equal(c.servers, d.servers) || !slices.Equal(c.options, d.options) {
			t.Errorf("%q: %+v, and %+v", text, c, d)
		}
	})
}
