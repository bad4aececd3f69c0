package portmap

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

var (
	somebody = netip.MustParseAddr("10.0.0.2")
	nonce    = [nonceSize]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	outside  = netip.MustParseAddrPort("203.0.113.7:40000")
)

// The bytes are written out from the figures of RFC 6887 sections 7 and 11, and RFC 6886 section 3.
var (
	pcpAsk = unhex("02 01 0000 000004b0" + "00000000000000000000ffff0a000002" +
		"0102030405060708090a0b0c 11 000000 1f90 1f90" + "00000000000000000000ffff00000000")
	pcpGrant = unhex("02 81 00 00 00000258 00000010" + "000000000000000000000000" +
		"0102030405060708090a0b0c 11 000000 1f90 9c40" + "00000000000000000000ffffcb007107")
	natpmpAsk   = unhex("00 01 0000 1f90 1f90 000004b0")
	natpmpGrant = unhex("00 81 0000 00000010 1f90 9c40 00000258")
	natpmpTells = unhex("00 80 0000 00000010 cb007107")
)

func TestWireFormat(t *testing.T) {
	t.Parallel()
	p := &pcp{client: somebody, nonce: nonce, internal: 8080}
	want8080 := netip.AddrPortFrom(netip.Addr{}, 8080)
	if got := p.ask(want8080, lifetime); len(got) != 1 || !bytes.Equal(got[0], pcpAsk) {
		t.Errorf("PCP asks %x, want %x", got, pcpAsk)
	}
	n := &natpmp{internal: 8080}
	if got := n.ask(want8080, lifetime); len(got) != 2 || !bytes.Equal(got[0], []byte{0, 0}) || !bytes.Equal(got[1], natpmpAsk) {
		t.Errorf("NAT-PMP asks %x, want 0000 and %x", got, natpmpAsk)
	}
	if a, ok := p.read(pcpGrant); !ok || !a.mapped || a.port != 40000 || a.addr != outside.Addr() || a.lifetime != 600 || a.epoch != 16 {
		t.Errorf("PCP reads %+v, %v", a, ok)
	}
	if a, ok := n.read(natpmpGrant); !ok || !a.mapped || a.port != 40000 || a.lifetime != 600 || a.epoch != 16 {
		t.Errorf("NAT-PMP reads %+v, %v", a, ok)
	}
	if a, ok := n.read(natpmpTells); !ok || a.mapped || a.addr != outside.Addr() {
		t.Errorf("NAT-PMP reads %+v, %v", a, ok)
	}
	// Withdrawing asks for nothing.
	for _, b := range p.ask(netip.AddrPort{}, 0) {
		if r, ok := parsePCPRequest(b); !ok || r.Lifetime != 0 || r.External.Port() != 0 || r.Internal != 8080 || r.Nonce != nonce {
			t.Errorf("PCP withdraws by %x", b)
		}
	}
	if got := n.ask(netip.AddrPort{}, 0); len(got) != 1 || !bytes.Equal(got[0], unhex("00 01 0000 1f90 0000 00000000")) {
		t.Errorf("NAT-PMP withdraws by %x", got)
	}
}

// What is not an answer to us is not heard at all.
func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	p := &pcp{client: somebody, nonce: nonce, internal: 8080}
	n := &natpmp{internal: 8080}
	change := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "one byte": {2}, "request": pcpAsk, "short": pcpGrant[:56], "odd": append(bytes.Clone(pcpGrant), 0),
		"nonce": change(pcpGrant, 24, 9), "port": change(pcpGrant, 41, 0), "TCP": change(pcpGrant, 36, 6),
		"version": change(pcpGrant, 0, 7), "opcode": change(pcpGrant, 1, 0x82), "huge": append(bytes.Clone(pcpGrant), make([]byte, 1100)...),
		"forged refusal": change(change(pcpGrant, 24, 9), 3, 2),
	} {
		if a, ok := p.read(b); ok {
			t.Errorf("PCP, %s: read as %+v", name, a)
		}
	}
	for name, b := range map[string][]byte{
		"empty": nil, "request": natpmpAsk, "short": natpmpGrant[:15], "long": append(bytes.Clone(natpmpGrant), 0),
		"port": change(natpmpGrant, 9, 0), "version": change(natpmpGrant, 0, 2), "TCP": change(natpmpGrant, 1, 130), "half": natpmpTells[:8],
	} {
		if a, ok := n.read(b); ok {
			t.Errorf("NAT-PMP, %s: read as %+v", name, a)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	p := &pcp{client: somebody, nonce: nonce, internal: 8080}
	refusal := bytes.Clone(pcpGrant)
	refusal[3] = 2
	if a, ok := p.read(refusal); !ok || a.failure != "not authorised" || a.pause.Seconds() != 600 {
		t.Errorf("refusal read as %+v, %v", a, ok)
	}
	refusal[3] = 200
	if a, ok := p.read(refusal); !ok || a.failure != "result code 200" {
		t.Errorf("unknown refusal read as %+v, %v", a, ok)
	}
	if a, ok := p.read(unhex("00 81 0001 00000010")); !ok || a.failure != "the gateway speaks NAT-PMP only" {
		t.Errorf("NAT-PMP's refusal read as %+v, %v", a, ok)
	}
	if a, ok := p.read(append(unhex("01 81 00 01 00000258 00000010"), make([]byte, 12)...)); !ok || a.failure == "" {
		t.Errorf("refusal of the version read as %+v, %v", a, ok)
	}
	six := pcpReply{Opcode: pcpMap, Lifetime: 600, Nonce: nonce, Protocol: protocolUDP, Internal: 8080, External: netip.MustParseAddrPort("[2001:db8::1]:8080")}
	if a, ok := p.read(six.append(nil)); !ok || a.failure == "" {
		t.Errorf("an IPv6 address for IPv4 read as %+v, %v", a, ok)
	}
	n := &natpmp{internal: 8080}
	if a, ok := n.read(unhex("00 81 0002 00000010")); !ok || a.failure != "not authorised" {
		t.Errorf("refusal read as %+v, %v", a, ok)
	}
}

func FuzzPCPRequest(f *testing.F) {
	f.Add(pcpAsk)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := parsePCPRequest(b); ok && !bytes.Equal(r.append(nil), b) {
			t.Errorf("%x becomes %x", b, r.append(nil))
		}
	})
}

// Answers may carry options and noise in reserved places, which are ignored: reading what was written again must give
// the same.
func FuzzPCPReply(f *testing.F) {
	f.Add(pcpGrant)
	f.Add(unhex("02 80 00 00 00000000 00000010 000000000000000000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parsePCPReply(b)
		if !ok {
			return
		}
		again := r.append(nil)
		if s, ok := parsePCPReply(again); !ok || s != r {
			t.Errorf("%x is %+v, written as %x it is %+v", b, r, again, s)
		}
		if len(again) > len(b) {
			t.Errorf("%x was accepted, but lacks something", b)
		}
	})
}

func FuzzNATPMPRequest(f *testing.F) {
	f.Add(natpmpAsk)
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := parseNATPMPRequest(b); ok && !bytes.Equal(r.append(nil), b) {
			t.Errorf("%x becomes %x", b, r.append(nil))
		}
	})
}

func FuzzNATPMPReply(f *testing.F) {
	f.Add(natpmpGrant)
	f.Add(natpmpTells)
	f.Add(unhex("00 81 0002 00000010"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseNATPMPReply(b)
		if ok && !bytes.Equal(r.append(nil)[:len(b)], b) {
			t.Errorf("%x becomes %x", b, r.append(nil))
		}
	})
}

const searchAnswer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n" +
	"USN: uuid:1::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nEXT:\r\nSERVER: x\r\nLOCATION: http://10.0.0.1:5000/rootDesc.xml\r\n\r\n"

func TestLocation(t *testing.T) {
	t.Parallel()
	gateway := netip.MustParseAddr("10.0.0.1")
	if u, err := location([]byte(searchAnswer), gateway); err != nil || u.String() != "http://10.0.0.1:5000/rootDesc.xml" {
		t.Errorf("location is %v, %v", u, err)
	}
	for _, bad := range []string{
		"http://10.0.0.3:5000/", "http://169.254.169.254/latest/meta-data/", "http://localhost/", "http://router.example/",
		"https://10.0.0.1/", "file:///etc/passwd", "http://10.0.0.1@10.0.0.3/", "http://user@10.0.0.1/", "http://10.0.0.1:0/",
		"http://10.0.0.1:99999/", "gopher://10.0.0.1/", "http://[::ffff:10.0.0.3]/", "/rootDesc.xml", "", "http://167772161/",
		"http:10.0.0.1", "http://10.0.0.1:5000:80/",
	} {
		b := []byte(strings.Replace(searchAnswer, "http://10.0.0.1:5000/rootDesc.xml", bad, 1))
		if u, err := location(b, gateway); err == nil {
			t.Errorf("location %q accepted as %v", bad, u)
		}
	}
	for name, b := range map[string]string{
		"request": "NOTIFY * HTTP/1.1\r\n\r\n", "garbage": "\x00\x01", "status": strings.Replace(searchAnswer, "200 OK", "301 Moved", 1),
		"long": strings.Replace(searchAnswer, "SERVER: x", "SERVER: "+strings.Repeat("x", maxAnswer), 1),
	} {
		if u, err := location([]byte(b), gateway); err == nil {
			t.Errorf("%s accepted as %v", name, u)
		}
	}
}

// FuzzLocation holds that whatever a device answers, we are led nowhere but to it.
func FuzzLocation(f *testing.F) {
	f.Add([]byte(searchAnswer))
	device := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := location(b, device)
		if err != nil {
			return
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Scheme != "http" || again.Hostname() != device.String() && again.Hostname() != "::ffff:10.0.0.1" {
			t.Errorf("%q leads to %v", b, u)
		}
	})
}

// FuzzDescription holds the same for the control URLs in a description.
func FuzzDescription(f *testing.F) {
	f.Add([]byte(igdDescription))
	at, err := url.Parse("http://10.0.0.1:5000/rootDesc.xml")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDevice(netip.MustParseAddr("10.0.0.1"), somebody)
		root, err := parseDescription(bytes.NewReader(b), at, d.addr)
		if err != nil {
			return
		}
		for _, s := range d.boxes(root) {
			u := endpoint(s)
			if err := ownURL(&u, d.addr); err != nil {
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}

func TestUnusable(t *testing.T) {
	t.Parallel()
	exclude := netip.MustParsePrefix("fd50:494c:4f54::/48")
	for _, a := range []string{"203.0.113.7", "8.8.8.8", "2001:db8::1", "2600::1"} {
		if why := unusable(netip.MustParseAddr(a), exclude); why != "" {
			t.Errorf("%s: %s", a, why)
		}
	}
	for _, a := range []string{
		"0.0.0.0", "10.1.2.3", "192.168.1.1", "172.20.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255",
		"192.0.0.4", "0.1.2.3", "::", "::1", "fe80::1", "fd00::1", "ff02::1", "fd50:494c:4f54::1",
	} {
		if unusable(netip.MustParseAddr(a), exclude) == "" {
			t.Errorf("%s is held usable", a)
		}
	}
}
