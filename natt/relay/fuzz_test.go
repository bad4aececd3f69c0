package relay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/nattest"
)

// Each decoder accepts only what the encoder writes: encoding again gives the input.

func FuzzFrame(f *testing.F) {
	b := make([]byte, FrameOverhead)
	PutFrameHeader(b, 0x0102030405060708)
	f.Add(append(b, "inner"...))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		channel, inner, ok := ParseFrame(b)
		if !ok {
			return
		}
		again := make([]byte, FrameOverhead)
		PutFrameHeader(again, channel)
		equal(t, append(again, inner...), b)
	})
}

func equal(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("encoded again:\n% x\nwas\n% x", got, want)
	}
}

func FuzzHint(f *testing.F) {
	f.Add(AppendHint(nil, HintSession, 7))
	f.Add(AppendHint(nil, HintChannel, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		if kind, number, ok := ParseHint(b); ok {
			equal(t, AppendHint(nil, kind, number), b)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(appendRecordBody(nil, Record{Kind: Ping, Echo: 3, Time: testNow}))
	f.Add(appendRecordBody(nil, Record{Kind: Pong, Flags: FlagMail, Echo: 3, Time: testNow, Observed: testAddr}))
	f.Add(appendRecordBody(nil, Record{Kind: Reveal, Echo: 1 << 63, Proof: 1<<48 - 1}))
	f.Add(appendRecordBody(nil, Record{Kind: Seen, Flags: FlagProve, Echo: 3, Proof: 7}))
	f.Add(appendRecordBody(nil, Record{Kind: Seen, Echo: 3, Observed: testAddr}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecordBody(b); err == nil {
			equal(t, appendRecordBody(nil, r), b)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(appendHelloBody(nil, Hello{Fingerprint: crypto.Fingerprint{1}, Instance: 2, Time: testNow, Started: testNow, Flags: FlagTakeover}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHelloBody(b); err == nil {
			equal(t, appendHelloBody(nil, h), b)
		}
	})
}

func FuzzWelcome(f *testing.F) {
	f.Add(appendWelcomeBody(nil, Welcome{Number: 5, Time: testNow, Observed: testAddr}))
	f.Add(appendWelcomeBody(nil, Welcome{Status: StatusUnknown, Time: testNow}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := parseWelcomeBody(b); err == nil {
			equal(t, appendWelcomeBody(nil, w), b)
		}
	})
}

func FuzzVisit(f *testing.F) {
	f.Add(appendVisitBody(nil, Visit{Target: crypto.Fingerprint{1}, Inner: make([]byte, MaxInner)}))
	f.Add(appendVisitBody(nil, Visit{}))
	f.Add(appendVisitBody(nil, Visit{Target: crypto.Fingerprint{2}, Ask: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parseVisitBody(b); err == nil {
			equal(t, appendVisitBody(nil, v), b)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	f.Add(appendGreeting(nil, Greeting{Time: testNow, ClaimBits: 18, MailBits: 17}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := parseGreeting(b); err == nil {
			equal(t, appendGreeting(nil, g), b)
		}
	})
}

func FuzzRequest(f *testing.F) {
	for _, r := range []Request{
		{Op: OpClaim, Number: 1, Claim: []byte("claim"), Card: []byte("card")},
		{Op: OpPut, Number: 2, To: crypto.Fingerprint{1}, Body: []byte("body")},
		{Op: OpList, After: 9}, {Op: OpAck, IDs: []uint64{1, 2}}, {Op: OpTime}, {Op: OpWithdraw, Body: []byte("body")},
		{Op: OpHead}, {Op: OpHead, Body: make([]byte, crypto.HeadSize)},
	} {
		f.Add(AppendRequest(nil, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseRequest(b); err == nil {
			equal(t, AppendRequest(nil, r), b)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, a := range []Answer{
		{Op: OpHead, Head: make([]byte, crypto.HeadSize)}, {Op: OpHead},
		{Op: OpTime, Time: testNow}, {Op: OpWithdraw, Status: StatusStale, Text: "why"}, {Op: OpClaim, Status: StatusRefused, Text: "why"},
		{Op: OpList, More: true, Items: []Item{{ID: 1, Body: []byte("a")}, {ID: 2}}},
	} {
		f.Add(AppendAnswer(nil, a))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAnswer(b); err == nil {
			equal(t, AppendAnswer(nil, a), b)
		}
	})
}

// Whatever arrives, the machines do not fail and stay as they were.
func FuzzReceive(f *testing.F) {
	server, static := crypto.DHPrivate{1}, crypto.DHPrivate{2}
	f.Add(AppendHint(nil, HintSession, 0))
	f.Add(append([]byte{TypeWelcome, version, 0, 0}, make([]byte, WelcomeSize-4)...))
	f.Add(append([]byte{TypeCookie, 0, 0, 0}, make([]byte, CookieSize-4)...))
	f.Add(append([]byte{TypeRecord, 0, 0, 0}, make([]byte, RecordSize-4)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := NewHome(HomeConfig{Server: server.Public(), Static: static})
		h.Advance(testNow)
		next := h.Next()
		if _, err := h.Receive(testNow, b); err == nil && !(len(b) == HintSize && b[1] == byte(HintChannel)) {
			t.Error("Home accepts it")
		}
		v := NewVisitor(VisitorConfig{Server: server.Public()})
		if _, err := v.Open(testNow, nil); err != nil {
			t.Fatal(err)
		}
		if v.Receive(testNow, b) == nil || v.Channel() != 0 {
			t.Error("Visitor accepts it")
		}
		if h.Next() != next || h.Registered() {
			t.Error("Home changed")
		}
	})
}

func FuzzCarrierMessage(f *testing.F) {
	f.Add([]byte{0, 1, 9})
	f.Add([]byte{0, 2, 1, 2, 0, 2, 3, 4, 0, 1, 5, 0, 3, 6, 7, 8})
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 2, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 300 {
			return
		}
		c := &Carrier{in: bufio.NewReader(bytes.NewReader(b)), open: true}
		m := make([]natt.Message, 110)
		for i := range m {
			m[i].Buf = make([]byte, 300)
		}
		n, err := c.read(m)
		if err != nil {
			return
		}
		var again []byte
		for i := range m[:n] {
			for d := range nattest.Datagrams(&m[i]) {
				again = append(binary.BigEndian.AppendUint16(again, uint16(len(d))), d...)
			}
		}
		equal(t, again, b)
	})
}
