package natt

import (
	"net/netip"
	"testing"
	"time"
)

// A flow that failed is left alone for a minute: NATs that got it wrong forget it only in silence. (A path that worked and
// died is not: TestSilentCut.)
func TestNotHammered(t *testing.T) {
	t.Parallel()
	for _, peer := range []string{"silent", "telling"} {
		u := newAuditor(t)
		list := []Candidate{{Observed, netip.MustParseAddrPort("8.8.8.8:53")}, {Host, netip.MustParseAddrPort("192.168.1.77:22")}}
		u.a.SetRemote(u.now, list)
		u.spend(10*time.Minute, func() {
			if peer == "telling" {
				u.a.SetRemote(u.now, list)
			}
		})
		for addr, times := range u.probes {
			if d := times[0].Sub(epoch); d > time.Second {
				t.Errorf("%s: %v tried after %v", peer, addr, d)
			}
			attempts := 1
			for i, at := range times[1:] {
				switch d := at.Sub(times[i]); {
				case d >= time.Minute:
					attempts++
				case d > attemptFor:
					t.Errorf("%s: %v tried again after %v", peer, addr, d)
				}
			}
			t.Logf("%s: %d packets to %v in %d attempts", peer, len(times), addr, attempts)
			if attempts < 3 || attempts > 5 {
				t.Errorf("%s: %d attempts in ten minutes", peer, attempts)
			}
		}
		u.check(2)
	}
}

// Our own move makes everything new; the peer's word does not.
func TestRefill(t *testing.T) {
	t.Parallel()
	u := newAuditor(t)
	addr := netip.MustParseAddrPort("8.8.8.8:53")
	lists := [][]Candidate{{{Observed, addr}}, {{Mapped, addr}}, {{Host, netip.MustParseAddrPort("9.9.9.9:1")}}}
	n := 0
	u.spend(20*time.Second, func() { n++; u.a.SetRemote(u.now, lists[n%3]) })
	before := len(u.probes[addr])
	if before > firstPackets || before < 7 {
		t.Errorf("%d packets", before)
	}
	u.a.NetworkChanged(u.now)
	u.spend(2*time.Second, func() {})
	if got := len(u.probes[addr]) - before; got < 7 || got > firstPackets {
		t.Errorf("%d packets after a change of our network", got)
	}
}

// Whoever fills the list leaves room for where it is really heard from, and where a server saw it.
func TestRoomForSources(t *testing.T) {
	t.Parallel()
	u := newAuditor(t)
	var list []Candidate
	for i := range MaxCandidates {
		list = append(list, Candidate{Host, netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, 8, byte(i + 1)}), 53)})
	}
	u.a.SetRemote(u.now, list)
	u.spend(3*time.Second, func() {})
	if len(u.probes) != maxListed {
		t.Errorf("%d listed addresses tried", len(u.probes))
	}
	heard := direct("9.9.9.9:53")
	u.a.Challenged(u.now, heard, Token{1}, 80)
	u.spend(time.Second, func() {})
	if len(u.probes[heard.Remote]) == 0 {
		t.Error("a source that is not listed is not tried")
	}
	u.a.Attested(u.now, u.relay, netip.MustParseAddrPort("7.7.7.7:1"))
	for i := range 6 {
		p := Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("7.7.7.7"), uint16(4000+i))}
		u.a.Challenged(u.now, p, Token{2}, 80)
		u.spend(time.Second, func() {})
		if len(u.probes[p.Remote]) == 0 {
			t.Errorf("%v is not tried, where a server saw the peer", p.Remote)
		}
	}
}
