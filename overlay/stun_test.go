package overlay

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/stun"
)

func FuzzParseSTUNServer(f *testing.F) {
	for _, s := range []string{"stun.example", "stun:stun.example:19302", "192.0.2.1", "[2001:db8::1]:3478", "2001:db8::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSTUNServer(text)
		if err != nil {
			return
		}
		if again, err := ParseSTUNServer(s.String()); err != nil || again != s {
			t.Errorf("%q: %+v, again %+v, %v", text, s, again, err)
		}
	})
}

// A namingUnderlay knows names.
type namingUnderlay struct {
	labUnderlay
	names map[string][]netip.Addr
}

func (u namingUnderlay) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	if a := u.names[host]; a != nil {
		return a, nil
	}
	<-ctx.Done() // a resolver that does not answer
	return nil, errors.New("timeout")
}

// serveSTUN answers as a plain public STUN server does.
func serveSTUN(h *natlab.Host, port uint16) (close func()) {
	c := h.Listen(port)
	go func() {
		m := []natt.Message{{Buf: make([]byte, 2000)}}
		for {
			if _, err := c.ReadBatch(m); err != nil {
				return
			}
			b, _ := stun.Answer(nil, m[0].Buf[:m[0].N], m[0].Addr)
			_, _ = c.WriteBatch([]natt.Message{{Buf: b, Addr: m[0].Addr}})
		}
	}()
	return func() { c.Close() }
}

// With a home server that has one address only, a STUN server of others makes known
// how the NAT maps. One that cannot be resolved does no harm.
func TestSTUNServers(t *testing.T) {
	for kind, want := range map[natlab.Kind]string{
		natlab.Port: "endpoint-independent", natlab.SymAddr: "address",
	} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				third := w.net.Host("third")
				defer serveSTUN(third, 19302)()
				alice := w.agent("alice", kind)
				alice.stop()
				alice.cfg.Underlay = namingUnderlay{labUnderlay{alice.host}, map[string][]netip.Addr{
					"stun.example": {netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1"), third.Addr()},
				}}
				alice.start()
				alice.registered()
				before, err := alice.Netcheck(w.ctx(time.Minute))
				if err != nil || before.Mapping == want {
					t.Errorf("without: %+v, %v", before, err)
				}
				alice.stop()
				alice.cfg.STUN = []STUNServer{{"stun.example", 19302}, {"gone.example", stunPort}}
				alice.start()
				alice.registered()
				start := time.Now()
				after, err := alice.Netcheck(w.ctx(time.Minute))
				if err != nil || after.Mapping != want || len(after.STUN) != 2 {
					t.Errorf("with: %+v, %v", after, err)
				}
				if took := time.Since(start); took > 2*natt.SurveyTime+stunLookUp+100*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// What netcheck says of each kind of NAT, with a server that has two addresses and with
// a STUN server of others beside it.
func TestNetcheckOfEveryKind(t *testing.T) {
	for _, kind := range natlab.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldWith(t, true)
				defer w.close()
				third := w.net.Host("third")
				defer serveSTUN(third, 19302)()
				alice := w.agent("alice", kind)
				alice.stop()
				alice.cfg.STUN = []STUNServer{{third.Addr().String(), 19302}}
				alice.start()
				alice.registered()
				n, err := alice.Netcheck(w.ctx(time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				mapping, filtering := "endpoint-independent", "address-and-port"
				switch kind {
				case natlab.None:
					mapping, filtering = "none", "endpoint-independent"
				case natlab.Firewall:
					mapping = "none"
				case natlab.Full:
					filtering = "endpoint-independent"
				case natlab.Addr:
					filtering = "address"
				case natlab.Sym, natlab.SymSeq:
					mapping = "address-and-port"
				case natlab.SymAddr:
					mapping = "address"
				}
				if n.Mapping != mapping || n.Filtering != filtering {
					t.Errorf("mapping %s, filtering %s; want %s, %s", n.Mapping, n.Filtering, mapping, filtering)
				}
				if (n.PortStep == 1) != (kind == natlab.SymSeq) {
					t.Errorf("port step %d", n.PortStep)
				}
			})
		})
	}
}
