package natt_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/stun"
)

// serveSTUN answers on two addresses and two ports, as RFC 5780 asks.
func serveSTUN(h *natlab.Host, ports [2]uint16) (close func()) {
	conns := [2]natt.PacketConn{h.Listen(ports[0]), h.Listen(ports[1])}
	addrs := h.Addrs()
	for i, c := range conns {
		go func() {
			m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
			for {
				if _, err := c.ReadBatch(m); err != nil {
					return
				}
				for b := range slices.Chunk(m[0].Buf[:m[0].N], runLength(m[0])) {
					q, ok := stun.ParseQuery(b)
					if !ok {
						continue
					}
					ip, port := m[0].Local, i
					otherIP := addrs[0]
					if ip == addrs[0] {
						otherIP = addrs[1]
					}
					other := netip.AddrPortFrom(otherIP, ports[1-i])
					if q.ChangeIP {
						ip = otherIP
					}
					if q.ChangePort {
						port = 1 - i
					}
					r := stun.AppendReply(nil, stun.Reply{ID: q.ID, Mapped: m[0].Addr, Other: other})
					_, _ = conns[port].WriteBatch([]natt.Message{{Buf: r, Addr: m[0].Addr, Local: ip}})
				}
			}
		}()
	}
	return func() { conns[0].Close(); conns[1].Close() }
}

// runSurvey drives a survey over a socket.
func runSurvey(conn natt.PacketConn, s *natt.Survey) natt.Facts {
	type answer struct {
		from netip.AddrPort
		b    []byte
	}
	answers := make(chan answer, 16)
	go func() {
		m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
		for {
			if _, err := conn.ReadBatch(m); err != nil {
				return
			}
			for b := range slices.Chunk(m[0].Buf[:m[0].N], runLength(m[0])) {
				answers <- answer{m[0].Addr, slices.Clone(b)}
			}
		}
	}()
	for !s.Done() {
		for _, d := range s.Advance(time.Now()) {
			_, _ = conn.WriteBatch([]natt.Message{{Buf: d.Data, Addr: d.To}})
		}
		select {
		case a := <-answers:
			s.Receive(time.Now(), a.from, a.b)
		case <-time.After(max(time.Until(s.Next()), time.Millisecond)):
		}
	}
	conn.Close()
	return s.Facts()
}

func TestSurvey(t *testing.T) {
	const (
		none = natt.BehaviorNone
		ei   = natt.EndpointIndependent
		ad   = natt.AddressDependent
		apd  = natt.AddressAndPortDependent
	)
	for kind, want := range map[natlab.Kind][2]natt.Behavior{
		natlab.None: {none, ei}, natlab.Firewall: {none, apd}, natlab.Full: {ei, ei}, natlab.Addr: {ei, ad},
		natlab.Port: {ei, apd}, natlab.Linux: {ei, apd}, natlab.Sym: {apd, apd},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := natlab.New(natlab.Config{Seed: 3})
				defer n.Close()
				server := n.Host("server", netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11"))
				defer serveSTUN(server, [2]uint16{3478, 443})()
				host := n.NAT(kind, netip.MustParseAddr("203.0.113.5")).Host("a")
				target := netip.AddrPortFrom(server.Addrs()[0], 3478)
				start := time.Now()
				targets := []netip.AddrPort{target}
				f := runSurvey(host.Listen(0), natt.NewMappingSurvey(time.Now(), targets, host.Addrs()))
				f.Filtering = runSurvey(host.Listen(0), natt.NewFilteringSurvey(time.Now(), targets)).Filtering
				if f.Mapping != want[0] || f.Filtering != want[1] || len(f.Blocked) != 0 {
					t.Errorf("%+v, want mapping %v, filtering %v", f, want[0], want[1])
				}
				if took := time.Since(start); took > 2*natt.SurveyTime {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// Without an answer nothing is claimed.
func TestSurveyWithoutUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natlab.New(natlab.Config{Seed: 3})
		defer n.Close()
		host := n.NAT(natlab.Linux, netip.MustParseAddr("203.0.113.5")).Host("a")
		targets := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:3478")}
		f := runSurvey(host.Listen(0), natt.NewMappingSurvey(time.Now(), targets, host.Addrs()))
		if f.Mapping != natt.BehaviorUnknown || f.Filtering != natt.BehaviorUnknown || len(f.Blocked) != 1 || f.String() != "no UDP" {
			t.Errorf("%+v", f)
		}
	})
}

// runLength is the size of the datagrams of a run.
func runLength(m natt.Message) int {
	if m.Segment > 0 {
		return m.Segment
	}
	return max(m.N, 1)
}
