package natt_test

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/nattest"
)

// open returns two sockets that reach each other at an address of this host.
func open(t testing.TB, c natt.ListenConfig, reach netip.Addr) nattest.Pair {
	t.Helper()
	var p nattest.Pair
	for _, end := range []struct {
		conn *natt.PacketConn
		addr *netip.AddrPort
	}{{&p.A, &p.AddrA}, {&p.B, &p.AddrB}} {
		conn, err := natt.Listen(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		*end.conn, *end.addr = conn, netip.AddrPortFrom(reach, conn.LocalAddr().Port())
	}
	return p
}

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

func TestConformance(t *testing.T) {
	for name, c := range map[string]natt.ListenConfig{
		"default":  {},
		"strict":   {DontFragment: true, PacketInfo: true},
		"no GSO":   {NoGSO: true},
		"no GRO":   {NoGRO: true},
		"no mmsg":  {NoBatch: true},
		"no speed": {NoGSO: true, NoGRO: true, NoBatch: true, PacketInfo: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("IPv4", func(t *testing.T) {
				nattest.Conformance(t, func(t *testing.T) nattest.Pair { return open(t, c, loopback4) })
			})
			t.Run("IPv4 only", func(t *testing.T) {
				c := c
				c.Addr = netip.AddrPortFrom(loopback4, 0)
				nattest.Conformance(t, func(t *testing.T) nattest.Pair { return open(t, c, loopback4) })
			})
			t.Run("IPv6", func(t *testing.T) {
				probe, err := natt.Listen(natt.ListenConfig{Addr: netip.AddrPortFrom(loopback6, 0)})
				if err != nil {
					t.Skip("no IPv6 here: ", err)
				}
				probe.Close()
				nattest.Conformance(t, func(t *testing.T) nattest.Pair { return open(t, c, loopback6) })
			})
		})
	}
}

func TestConformanceGeneric(t *testing.T) {
	for name, addr := range map[string]netip.AddrPort{"wildcard": {}, "IPv4 only": netip.AddrPortFrom(loopback4, 0)} {
		t.Run(name, func(t *testing.T) {
			nattest.Conformance(t, func(t *testing.T) nattest.Pair {
				return open(t, natt.ListenConfig{Portable: true, Addr: addr, Logger: slog.New(slog.DiscardHandler)}, loopback4)
			})
		})
	}
}
