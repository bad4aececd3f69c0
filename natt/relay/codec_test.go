package relay

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

var (
	testNow  = time.UnixMilli(1_800_000_000_000)
	testAddr = netip.MustParseAddrPort("192.0.2.7:4242")
)

func testKey(t testing.TB) crypto.DHPrivate {
	t.Helper()
	k, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSizes(t *testing.T) {
	server, static := testKey(t), testKey(t)
	hello, err := newRequest(server.Public(), &static, 7, appendHelloBody(nil, Hello{Time: testNow}), nil)
	if err != nil || len(hello.msg) != HelloSize {
		t.Fatalf("HELLO of %d bytes, %v", len(hello.msg), err)
	}
	visit, err := newRequest(server.Public(), nil, 7, appendVisitBody(nil, Visit{Inner: []byte("init")}), nil)
	if err != nil || len(visit.msg) != VisitSize {
		t.Fatalf("VISIT of %d bytes, %v", len(visit.msg), err)
	}
	for _, r := range []*request{hello, visit} {
		if !NewMAC(server.Public()).Check(r.msg) || NewMAC(static.Public()).Check(r.msg) {
			t.Error("mac1 is wrong")
		}
		a, err := Accept(server, r.msg)
		if err != nil {
			t.Fatal(err)
		}
		want := Welcome{Number: 99, Time: testNow, Observed: testAddr}
		answer, err := a.Answer(want)
		if err != nil || len(answer) != WelcomeSize || len(answer) > len(r.msg) {
			t.Fatalf("answer of %d bytes, %v", len(answer), err)
		}
		for i := range answer {
			bad := bytes.Clone(answer)
			bad[i] ^= 1
			if _, _, err := r.complete(bad); err == nil {
				t.Errorf("answer accepted with byte %d flipped", i)
			}
		}
		got, hs, err := r.complete(answer)
		if err != nil || got != want {
			t.Fatalf("answer %+v, %v", got, err)
		}
		keys, err := hs.Split()
		if err != nil {
			t.Fatal(err)
		}
		tr, err := a.Transport()
		if err != nil {
			t.Fatal(err)
		}
		rec := Record{Kind: Ping, Echo: 5, Time: testNow}
		b, err := AppendRecord(nil, 99, crypto.NewTransport(keys), rec)
		if err != nil || len(b) != RecordSize {
			t.Fatalf("RECORD of %d bytes, %v", len(b), err)
		}
		number, sealed, ok := ParseRecord(b)
		if !ok || number != 99 {
			t.Fatal("record header")
		}
		if got, err := OpenRecord(tr, sealed); err != nil || got != rec {
			t.Errorf("record %+v, %v", got, err)
		}
		if _, err := OpenRecord(tr, sealed); err == nil {
			t.Error("a replayed record is accepted")
		}
	}
}

// Every bit of a request is bound by mac1 or mac2.
func TestRequestBits(t *testing.T) {
	server, static := testKey(t), testKey(t)
	cookies := NewCookies(server.Public(), [32]byte{1})
	r, err := newRequest(server.Public(), &static, 7, appendHelloBody(nil, Hello{Time: testNow}), nil)
	if err != nil {
		t.Fatal(err)
	}
	mac := NewMAC(server.Public())
	if cookies.Check(testNow, r.msg, testAddr) {
		t.Error("a request without a cookie proves its source")
	}
	cookie, ok := mac.openCookie(cookies.Append(nil, testNow, r.msg, testAddr), r.msg)
	if !ok {
		t.Fatal("COOKIE refused")
	}
	msg := setMAC2(bytes.Clone(r.msg), cookie)
	if !mac.Check(msg) || !cookies.Check(testNow, msg, testAddr) || !cookies.Check(testNow.Add(cookieLife), msg, testAddr) {
		t.Error("good cookie refused")
	}
	if cookies.Check(testNow.Add(2*cookieLife), msg, testAddr) {
		t.Error("old cookie accepted")
	}
	if cookies.Check(testNow, msg, netip.MustParseAddrPort("192.0.2.7:4243")) {
		t.Error("cookie accepted from another port")
	}
	check := NewChecker(server.Public())
	for i := range msg {
		bad := bytes.Clone(msg)
		bad[i] ^= 1
		if check.Check(bad) != mac.Check(bad) || !check.Check(msg) {
			t.Error("Checker and MAC differ")
		}
		if mac.Check(bad) && cookies.Check(testNow, bad, testAddr) {
			t.Errorf("accepted with byte %d flipped", i)
		}
	}
	b := cookies.Append(nil, testNow, r.msg, testAddr)
	if len(b) != CookieSize {
		t.Errorf("COOKIE of %d bytes", len(b))
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, ok := mac.openCookie(bad, r.msg); ok {
			t.Errorf("COOKIE accepted with byte %d flipped", i)
		}
	}
}

func TestStamp(t *testing.T) {
	server := testKey(t).Public()
	subject := MailSubject(crypto.Fingerprint{1}, []byte("body"))
	s, err := NewStamp(context.Background(), server, OpPut, subject, 10, testNow)
	if err != nil || !s.Check(server, OpPut, subject, 10, testNow.Add(StampWindow)) {
		t.Fatalf("good stamp refused, %v", err)
	}
	other := MailSubject(crypto.Fingerprint{2}, []byte("body"))
	if s.Check(server, OpPut, subject, 10, testNow.Add(StampWindow+time.Second)) || s.Check(server, OpPut, other, 60, testNow) ||
		(Stamp{}).Check(server, OpPut, subject, 0, testNow) {
		t.Error("bad stamp accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewStamp(ctx, server, OpPut, subject, MaxStampBits, testNow); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := NewStamp(ctx, server, OpPut, subject, MaxStampBits+1, testNow); err == nil {
		t.Error("a server may ask for anything")
	}
}

func BenchmarkStamp18(b *testing.B) {
	server := testKey(b).Public()
	for b.Loop() {
		if _, err := NewStamp(context.Background(), server, OpPut, [32]byte{}, 18, testNow); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMACCheck(b *testing.B) {
	key := testKey(b).Public()
	mac, check := NewMAC(key), NewChecker(key)
	b.ReportAllocs()
	msg := mac.append(append([]byte{TypeHello, version}, make([]byte, HelloSize-2*macSize-2)...), nil)
	for b.Loop() {
		if !check.Check(msg) {
			b.Fatal("refused")
		}
	}
}

func BenchmarkHello(b *testing.B) {
	server, static := testKey(b), testKey(b)
	r, err := newRequest(server.Public(), &static, 7, appendHelloBody(nil, Hello{Time: testNow}), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		a, err := Accept(server, r.msg)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := a.Answer(Welcome{Number: 1, Time: testNow, Observed: testAddr}); err != nil {
			b.Fatal(err)
		}
		if _, err := a.Transport(); err != nil {
			b.Fatal(err)
		}
	}
}
