package run

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/tun/userspace/forward"
)

func query(t *testing.T, id uint16, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A resolver answers a query with the query and its own name behind it, after the
// answer to another one.
func resolver(name, network string) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if network == "tcp" {
			if b, err := forward.ReadMessage(theirs); err == nil {
				forward.WriteMessage(theirs, append(b, name...))
			}
			return
		}
		b := make([]byte, 1000)
		n, err := theirs.Read(b)
		if err != nil {
			return
		}
		theirs.Write([]byte{b[0] + 1, b[1], 0})
		theirs.Write(append(b[:n], name...))
	}()
	return ours
}

// Names of the overlay go to the agent, others to the first resolver of the host
// that answers, over what they came over.
func TestNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.1\nnameserver 192.0.2.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked []string
	n := &Names{
		Zones: []string{"pilot.internal"}, File: file,
		Overlay: func(context.Context) (net.Conn, error) { return resolver("agent", "udp"), nil },
		Dial: func(_ context.Context, network, to string) (net.Conn, error) {
			asked = append(asked, network+" "+to)
			switch to {
			case "192.0.2.1:53":
				return nil, errors.New("not there")
			case "192.0.2.2:53":
				return resolver("host", network), nil
			}
			return nil, io.ErrUnexpectedEOF
		},
	}
	for _, c := range []struct {
		name, network, want string
		asked               []string
	}{
		{"bob.pilot.internal.", "udp", "agent", nil},
		{"Bob.PILOT.internal.", "tcp", "agent", nil},
		{"pilot.internal.", "udp", "agent", nil},
		{"notpilot.internal.", "udp", "host", []string{"udp 192.0.2.1:53", "udp 192.0.2.2:53"}},
		{"www.example.", "tcp", "host", []string{"tcp 192.0.2.1:53", "tcp 192.0.2.2:53"}},
	} {
		asked = nil
		q := query(t, 7, c.name)
		got, err := n.Answer(t.Context(), c.network, q)
		if want := string(q) + c.want; err != nil || string(got) != want {
			t.Errorf("%s %s: %q, %v", c.network, c.name, got, err)
		}
		if !slices.Equal(asked, c.asked) {
			t.Errorf("%s: asked %v", c.name, asked)
		}
	}
	if got, err := n.Answer(t.Context(), "udp", []byte("x")); err == nil {
		t.Errorf("what is no query has the answer %q", got)
	}
	n.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	if _, err := n.Answer(t.Context(), "udp", query(t, 1, "www.example.")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("no resolver answers: %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	for _, c := range []struct {
		host, search, want string
		resolvers          []string
	}{
		{"", "", "nameserver 192.0.0.1\n", []string{"127.0.0.1"}},
		{
			"# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example lan\n", "",
			"nameserver 192.0.0.1\noptions edns0 trust-ad\nsearch corp.example lan\n", []string{"127.0.0.53"},
		},
		{
			"nameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver nonsense\nnameserver 9.9.9.9\nnameserver 8.8.8.8\ndomain a\nsearch b c", "pilot.internal",
			"nameserver 192.0.0.1\nsearch pilot.internal b c\n", []string{"fe80::1%eth0", "1.1.1.1", "9.9.9.9"},
		},
		{"nameserver\n\noptions\n", "pilot.internal", "nameserver 192.0.0.1\nsearch pilot.internal\n", []string{"127.0.0.1"}},
	} {
		if got := string(ResolvConf([]byte(c.host), c.search)); got != "# Made by pilotctl run.\n"+c.want {
			t.Errorf("%q: %q", c.host, got)
		}
		if got := Resolvers([]byte(c.host)); !slices.Equal(got, c.resolvers) {
			t.Errorf("%q: %q", c.host, got)
		}
	}
}
