package dns

import (
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
)

const (
	// Domain is the zone of names, ReverseDomain that of addresses.
	Domain        = ipam.Suffix
	ReverseDomain = "4.5.f.4.c.4.9.4.0.5.d.f.ip6.arpa"

	// ServerName is the name of the resolver itself. It always resolves, so that
	// one can find out whether questions reach us.
	ServerName = "dns." + Domain

	zone        = Domain + "."
	reverseZone = ReverseDomain + "."
	serverName  = ServerName + "."
)

// Address is where the resolver is asked: node 53 of network 0.
func Address() netip.Addr { return ipam.Addr{Node: 53}.ULA() }

// maxServices is the number of services of one agent that become records: all
// of them in one reply still fit 512 octets.
const maxServices = 4

// An Entry is one agent that is to be found by name.
type Entry struct {
	Name        string // one label, as ipam.ValidName wants it
	Addr        ipam.Addr
	Fingerprint crypto.Fingerprint
	Services    []Service
}

// A Service is something that an agent offers, as an SRV record says it
// (RFC 2782).
type Service struct {
	Name string // "a2a", without the underscore
	Port uint16 // TCP
}

// A Zone holds the names. The zero value is not usable; see NewZone. All methods
// may be called from any goroutine.
type Zone struct{ data atomic.Pointer[table] }

// NewZone returns a zone that knows the resolver itself and nobody else.
func NewZone() *Zone {
	z := new(Zone)
	z.Set(nil)
	return z
}

// table is one state of the zone and never changes. Its keys are whole names in
// lower case with the final dot. A name between a zone and a name below it is
// there too, without records: it exists (RFC 8020).
type table map[string]*records

type records struct {
	addr netip.Addr
	txt  []string
	ptr  []string
	srv  []dnsmessage.SRVResource
	apex bool
}

// Set replaces all that the zone knows. An entry whose name is not valid, or was
// in the list before, is left out, and so are all but the first four services of
// an entry.
func (z *Zone) Set(entries []Entry) {
	t := make(table, 4*len(entries)+4)
	for _, apex := range []string{zone, reverseZone} {
		t[apex] = &records{apex: true}
	}
	t.host(serverName, Address())
	for _, e := range entries {
		name := e.Name + "." + zone
		if ipam.ValidName(e.Name) != nil || t[name] != nil {
			continue
		}
		t.host(name, e.Addr.ULA()).txt = []string{
			"address=" + e.Addr.String(), "fingerprint=" + e.Fingerprint.String(),
		}
		for _, s := range e.Services[:min(len(e.Services), maxServices)] {
			t.service(name, s)
		}
	}
	z.data.Store(&t)
}

// host enters a name with its address, both ways.
func (t table) host(name string, a netip.Addr) *records {
	r := t.at(name)
	r.addr = a
	back := t.at(reverse(a))
	back.ptr = []string{name} // two agents never have one address
	return r
}

func (t table) service(name string, s Service) {
	if s.Name == "" || len(s.Name) > 15 || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return // RFC 6335 5.1
	}
	kind := "_" + s.Name + "._tcp."
	target, err := dnsmessage.NewName(name)
	if err != nil {
		return
	}
	at := t.at(kind + name)
	if len(at.srv) == 0 {
		all := t.at(kind + zone)
		all.ptr = append(all.ptr, kind+name)
	}
	at.srv = append(at.srv, dnsmessage.SRVResource{Port: s.Port, Target: target})
}

// at returns the records of a name in one of the zones, and makes it and all
// names above it exist.
func (t table) at(name string) *records {
	r := t[name]
	if r == nil {
		r = new(records)
		t[name] = r
		if _, parent, ok := strings.Cut(name, "."); ok && t[parent] == nil {
			t.at(parent)
		}
	}
	return r
}

// reverse is the name of an address in ip6.arpa (RFC 3596 2.5).
func reverse(a netip.Addr) string {
	const digits = "0123456789abcdef"
	b := a.As16()
	var s strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		s.Write([]byte{digits[b[i]&15], '.', digits[b[i]>>4], '.'})
	}
	return s.String() + "ip6.arpa."
}

// fold returns a name in lower case.
func fold(n *dnsmessage.Name) string {
	b := make([]byte, n.Length)
	for i, c := range n.Data[:n.Length] {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[i] = c
	}
	return string(b)
}

// zoneOf returns the zone that a name in lower case belongs to, "" if neither.
func zoneOf(name string) string {
	for _, z := range []string{zone, reverseZone} {
		if name == z || strings.HasSuffix(name, "."+z) {
			return z
		}
	}
	return ""
}
