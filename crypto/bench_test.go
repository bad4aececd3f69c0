package crypto

import (
	"fmt"
	"testing"
)

var benchSizes = []int{64, 1280}

func BenchmarkSeal(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := testSessions()
			buf := make([]byte, n+Overhead)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Seal(buf[:0], buf[HeaderSize:HeaderSize+n], false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, r := testSessions()
			frames := make([][]byte, 1024)
			for i := range frames {
				frames[i], _ = s.Seal(nil, make([]byte, n), false)
			}
			out := make([]byte, 0, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if i%len(frames) == 0 {
					r.recv.window = replayWindow{}
				}
				if _, _, _, err := r.Open(out, frames[i%len(frames)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkSealParallel shows what the shared counter costs.
func BenchmarkSealParallel(b *testing.B) {
	s, _ := testSessions()
	b.SetBytes(1280)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 1280+Overhead)
		for pb.Next() {
			if _, err := s.Seal(buf[:0], buf[HeaderSize:HeaderSize+1280], false); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHandshake is both sides: INIT made, answered, and completed.
func BenchmarkHandshake(b *testing.B) {
	x, y := testPairs(b)
	b.ReportAllocs()
	for b.Loop() {
		init, err := x.Initiate(testNow, 1, InitPayload{})
		if err != nil {
			b.Fatal(err)
		}
		resp, _, _, err := y.Respond(init.Message(), 2, RespPayload{})
		if err != nil {
			b.Fatal(err)
		}
		if _, _, _, err := init.Complete(resp); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckInit(b *testing.B) {
	x, y := testPairs(b)
	init, err := x.Initiate(testNow, 1, InitPayload{})
	if err != nil {
		b.Fatal(err)
	}
	forged := append([]byte(nil), init.Message()...)
	forged[50] ^= 1
	b.ReportAllocs()
	for b.Loop() {
		if y.CheckInit(forged) {
			b.Fatal("forgery passes")
		}
	}
}

func BenchmarkInboundTag(b *testing.B) {
	x, _ := testPairs(b)
	b.ReportAllocs()
	for b.Loop() {
		x.InboundTag(1)
	}
}

func BenchmarkNewPair(b *testing.B) {
	c, _ := testPairConfig()
	for b.Loop() {
		if _, err := NewPair(c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealLetter(b *testing.B) {
	k, err := NewSealPrivate([32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	public := k.Public()
	for b.Loop() {
		if _, err := public.Seal("info", make([]byte, 1000)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseCard(b *testing.B) {
	card, err := testCard(b).Sign(testKey(1))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ParseCard(card); err != nil {
			b.Fatal(err)
		}
	}
}
