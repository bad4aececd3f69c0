package crypto

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// FuzzParseCard: what is accepted has one encoding. The fields are fuzzed
// apart from the signature, which no fuzzer can make. Fuzz it with
// -fuzzminimizetime 10x: shrinking 1.4 KiB seeds takes all the time otherwise.
func FuzzParseCard(f *testing.F) {
	signed, err := testCard(f).Sign(testKey(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(signed[:len(signed)-SignatureSize])
	f.Add(signed[:cardFixed])
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCard(b); err == nil && !bytes.Equal(c.appendBody(nil), b) {
			t.Errorf("body %x: encoded again: %x", b, c.appendBody(nil))
		}
		if c, err := ParseCard(b); err == nil {
			if again, err := c.Sign(testKey(1)); err != nil || !bytes.Equal(again, b) {
				t.Errorf("card %x: signed again: %x, %v", b, again, err)
			}
		}
	})
}

// FuzzParseServer: the text of what is accepted is canonical, and only its
// case, the default port or an address were put in form.
func FuzzParseServer(f *testing.F) {
	key := testDH(2).Public().String()
	for _, s := range []string{"rdv", "rdv:443", "[2001:db8::1]:9", "192.0.2.1", "::1", "rdv:03478", "a..b", "[::1"} {
		f.Add(s + "#" + key)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseServer(text)
		if err != nil {
			return
		}
		again, err := ParseServer(s.String())
		if err != nil || again != s || again.String() != s.String() {
			t.Errorf("%q: %v, then %v, %v", text, s, again, err)
		}
		if err := s.check(); err != nil {
			t.Errorf("%q: not fit for a card: %v", text, err)
		}
		if strings.Contains(s.Host, ":") || strings.Contains(text, "[") {
			return // the address may have been written in another form
		}
		if got, want := s.String(), strings.Replace(lowerASCII(text), ":3478#", "#", 1); got != want {
			t.Errorf("%q: became %q", text, got)
		}
	})
}

// FuzzText: keys and fingerprints have one spelling per case.
func FuzzText(f *testing.F) {
	f.Add(testDH(2).Public().String())
	f.Add(testKey(1).Public().String())
	f.Add(strings.ToUpper(testKey(1).Public().String()))
	text, _ := testKey(1).Public().MarshalText()
	f.Add(string(text))
	f.Fuzz(func(t *testing.T, s string) {
		want := lowerASCII(s)
		if fp, err := ParseFingerprint(s); err == nil && fp.String() != want {
			t.Errorf("fingerprint %q: %q", s, fp)
		}
		if k, err := ParseDHPublicText(s); err == nil && k.String() != want {
			t.Errorf("X25519 key %q: %q", s, k)
		}
		var k PublicKey
		if err := k.UnmarshalText([]byte(s)); err == nil {
			if text, _ := k.MarshalText(); string(text) != want {
				t.Errorf("public key %q: %q", s, text)
			}
		}
	})
}

// FuzzKeys: a key that is accepted is the bytes that it came as, in every form, and
// can be used: nothing agreed with it is zero, and something can be sealed to it.
func FuzzKeys(f *testing.F) {
	public, dh := testKey(1).Public(), testDH(2).Public()
	f.Add(public[:])
	f.Add(dh[:])
	f.Add(make([]byte, 32))
	seal, err := NewSealPrivate([32]byte{3})
	if err != nil {
		f.Fatal(err)
	}
	sealing := seal.Public()
	f.Add(sealing[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParsePublicKey(b); err == nil {
			text, err := k.MarshalText()
			var again PublicKey
			if !bytes.Equal(k[:], b) || err != nil || again.UnmarshalText(text) != nil || again != k {
				t.Errorf("%x: %x, %s, %v", b, k[:], text, err)
			}
		}
		if k, err := ParseDHPublic(b); err == nil {
			if again, err := ParseDHPublicText(k.String()); !bytes.Equal(k[:], b) || err != nil || again != k {
				t.Errorf("%x: %x, %v", b, k[:], err)
			}
			if secret, err := newKeyPair(*testDH(2)).dh(k); err != nil || secret == [32]byte{} {
				t.Errorf("%x: accepted, and agrees on %x, %v", b, secret, err)
			}
		}
		if k, err := ParseSealPublic(b); err == nil {
			if _, err := k.Seal("fuzz", nil); err != nil || !bytes.Equal(k[:], b) {
				t.Errorf("%x: accepted, and cannot be sealed to: %v", b, err)
			}
		}
	})
}

// FuzzHeaders: a header that is accepted is the one that the fields encode,
// and no bytes are two kinds of message.
func FuzzHeaders(f *testing.F) {
	g := goldenTunnel(f)
	for _, name := range []string{"init", "resp", "data-0", "data-2"} {
		f.Add(g.values[name])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kinds := 0
		header := make([]byte, 16)
		if sender, tag, ok := InitHeader(b); ok {
			kinds++
			putInitHeader(header, sender, tag)
			if !bytes.Equal(header, b[:16]) {
				t.Errorf("INIT %x: %x", b[:16], header)
			}
		}
		if sender, receiver, ok := RespHeader(b); ok {
			kinds++
			putRespHeader(header, sender, receiver)
			if !bytes.Equal(header[:respHeader], b[:respHeader]) {
				t.Errorf("RESP %x: %x", b[:respHeader], header[:respHeader])
			}
		}
		if receiver, ok := DataIndex(b); ok {
			kinds++
			putDataHeader(header, receiver, binary.BigEndian.Uint64(b[8:]), b[1] == flagPartial)
			if !bytes.Equal(header, b[:16]) {
				t.Errorf("DATA %x: %x", b[:16], header)
			}
		}
		if kinds > 1 {
			t.Errorf("%x: %d kinds of message", b, kinds)
		}
		if InitMAC(b) != [16]byte{} && len(b) != InitSize {
			t.Errorf("%x: a MAC of something else than INIT", b)
		}
	})
}

// FuzzPayloads: the encrypted payloads of INIT and RESP have one encoding.
func FuzzPayloads(f *testing.F) {
	f.Add(make([]byte, payloadSize))
	f.Add([]byte("\x31\x32\x33\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x07\x10\x92\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != payloadSize {
			return
		}
		raw := [payloadSize]byte(b)
		if again, err := parseInitPayload(raw).encode(); err != nil || again != raw {
			t.Errorf("INIT payload %x: %x, %v", raw, again, err)
		}
		if p, err := parseRespPayload(raw); err == nil {
			if again, err := p.encode(); err != nil || again != raw {
				t.Errorf("RESP payload %x: %x, %v", raw, again, err)
			}
		}
	})
}

// FuzzTunnelMessages: without the pair secret nothing is answered and no
// handshake under way is disturbed. With a mended mac1 neither, unless the
// message is the real one.
func FuzzTunnelMessages(f *testing.F) {
	g := goldenTunnel(f)
	a, b := testPairs(f)
	f.Add(g.values["init"])
	f.Add(g.values["resp"])
	f.Add(g.values["init"][:InitSize-1])
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, m := range [][]byte{msg, mend(msg, b.inbound.appendMAC)} {
			if _, _, _, err := b.Respond(m, 1, RespPayload{}); err == nil && !bytes.Equal(m, g.values["init"]) {
				t.Errorf("INIT %x: answered", m)
			}
		}
		init, err := a.initiate(testNow, 0x01020304, InitPayload{Millis: 1}, testDH(21))
		if err != nil {
			t.Fatal(err)
		}
		before := init.handshake.sym
		for _, m := range [][]byte{msg, mend(msg, a.outbound.appendMAC)} {
			if _, _, _, err := init.Complete(m); err == nil || init.handshake.sym != before {
				t.Errorf("RESP %x: %v", m, err)
			}
		}
	})
}

// mend replaces the last 16 bytes by what appendMAC makes of the rest.
func mend(msg []byte, appendMAC func([]byte) []byte) []byte {
	if len(msg) < TagSize {
		return msg
	}
	n := len(msg) - TagSize
	return appendMAC(msg[:n:n])
}

// FuzzSessionOpen: a frame that is accepted is the one that Seal makes of the
// plaintext, and one that is not moves nothing.
func FuzzSessionOpen(f *testing.F) {
	a, _ := testSessions()
	for i, plaintext := range []string{"", "x", "a packet of some length"} {
		frame, err := a.Seal(nil, []byte(plaintext), i == 1)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		a, b := testSessions()
		before := b.recv.window
		plaintext, partial, counter, err := b.Open(nil, frame)
		if err != nil {
			if b.recv.window != before {
				t.Errorf("%x: refused, and moved the window", frame)
			}
			return
		}
		a.send.counter.Store(counter)
		if again, err := a.Seal(nil, plaintext, partial); err != nil || !bytes.Equal(again, frame) {
			t.Errorf("%x: sealed again: %x, %v", frame, again, err)
		}
	})
}

// FuzzHandshakeRead: the Noise core refuses garbage in every pattern without a
// change of state.
func FuzzHandshakeRead(f *testing.F) {
	for p := range patternSpecs {
		init, _ := vectorSides(f, fixedVector(p))
		msg, err := init.Write(nil, []byte("payload"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(p), msg)
	}
	f.Fuzz(func(t *testing.T, n uint8, msg []byte) {
		p := Pattern(n)
		if _, ok := patternSpecs[p]; !ok {
			return
		}
		init, resp := vectorSides(t, fixedVector(p))
		before := resp.sym
		payload, err := resp.Read(nil, msg)
		if err != nil {
			if resp.sym != before || resp.next != 0 {
				t.Errorf("%s: %x: refused, and changed the state", p, msg)
			}
			return
		}
		if again, err := init.Write(nil, payload); err == nil && bytes.Equal(again[:32], msg[:32]) && !bytes.Equal(again, msg) {
			t.Errorf("%s: %x: written again: %x", p, msg, again)
		}
	})
}
