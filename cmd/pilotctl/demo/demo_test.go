package demo

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
)

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"":                     "''",
		"bob":                  "bob",
		"http://b.internal:8/": "http://b.internal:8/",
		"HOST#KEY":             "'HOST#KEY'",
		"a b":                  "'a b'",
		"it's":                 `'it'\''s'`,
		"$HOME":                "'$HOME'",
	} {
		if got := shellWord(word); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", word, got, want)
		}
	}
}

func TestTranscript(t *testing.T) {
	var out bytes.Buffer
	tr := transcript{w: &out}
	tr.heading("A %s:", "thing")
	tr.command("bob", []string{"pilotctl", "up", "--server", "A#B"}, " &")
	tr.command("bob", []string{"sh", "-c", "pilotctl id | grep contact"}, "")
	tr.lines("")
	tr.lines("done\n\n")
	want := "\n# A thing:\nbob$ pilotctl up --server 'A#B' &\nbob$ pilotctl id | grep contact\ndone\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	tr.color = true
	out.Reset()
	tr.command("bob", []string{"true"}, "")
	if want := "\x1b[2mbob$ \x1b[0m\x1b[1mtrue\x1b[0m\n"; out.String() != want {
		t.Errorf("in colours: got %q, want %q", out.String(), want)
	}
}

// TestKnock knocks at a silent socket, at one that answers, and at none.
func TestKnock(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().String()
	k, err := Knock(context.Background(), addr, 16)
	if want := (Knocking{Sent: 16}); err != nil || k != want {
		t.Errorf("silence: %+v, %v, want %+v", k, err, want)
	}
	var arrived int
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			arrived += n
			conn.WriteTo(buf[:3], from)
		}
	}()
	k, err = Knock(context.Background(), addr, 10)
	if err != nil || k.Sent != 10 || k.Received < 30 {
		t.Errorf("an answer of 3 bytes to each of 10: %+v, %v", k, err)
	}
	conn.Close()
	<-answered
	if arrived == 0 {
		t.Error("nothing arrived")
	}
	if k, err := Knock(context.Background(), addr, 10); err == nil {
		t.Errorf("a closed port: %+v, want an error", k)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Knock(ctx, addr, 10); !errors.Is(err, context.Canceled) && err == nil {
		t.Error("a context that has ended: no error")
	}
}
