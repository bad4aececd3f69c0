package overlay

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// strangers are the kinds of datagrams that somebody without a pair secret can send.
func strangers() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 1))
	shaped := func(n int, head ...byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		copy(b, head)
		return b
	}
	return map[string][]byte{
		"INIT":             shaped(crypto.InitSize, byte(crypto.TypeInit), 1, 0, 0),
		"INIT, too long":   shaped(crypto.InitSize+1, byte(crypto.TypeInit), 1, 0, 0),
		"RESP":             shaped(crypto.RespSize, byte(crypto.TypeResp), 1, 0, 0),
		"DATA":             shaped(1312, byte(crypto.TypeData), 0, 0, 0),
		"relayed INIT":     relayed(7, shaped(crypto.InitSize, byte(crypto.TypeInit), 1, 0, 0)),
		"relayed DATA":     relayed(7, shaped(256, byte(crypto.TypeData), 0, 0, 0)),
		"server's WELCOME": shaped(96, relay.TypeWelcome, 1, 0, 0),
		"server's RECORD":  shaped(76, relay.TypeRecord, 0, 0, 0),
		"server's HINT":    shaped(16, relay.TypeHint, 1, 0, 0),
		"STUN":             shaped(20, 0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42),
		"WireGuard":        shaped(148, 1, 0, 0, 0),
		"DTLS":             shaped(200, 22, 0xfe, 0xfd),
		"QUIC":             shaped(1200, 0xc3, 0, 0, 0, 1),
		"noise":            shaped(700, 0xff),
	}
}

// crowd is an agent with ten thousand peers, each of which has 25 knock tags.
func crowd() *rig {
	r := newRig(2, &sinkDevice{})
	r.receive(stranger, natt.Message{Buf: []byte{0xff}}) // which loads the snapshot
	r.tags.advance(1000)
	for i := range uint64(10_000 * (2*crypto.EpochWindow + 1)) {
		r.tags.slots[i*0x9e3779b97f4a7c15] = nil
	}
	r.tags.filter()
	for i := range uint32(10_000) {
		r.waiting.Store(i*0x9e3779b9, struct{}{})
	}
	return r
}

// stranger hands the agent a kind of datagram n times, with other numbers each time.
func (r *rig) stranger(p []byte, n int) {
	from := natt.Path{Remote: stranger}
	at := 8
	if p[0] == relay.TypeFrame {
		at += relayHeader
	}
	for i := range n {
		binary.BigEndian.PutUint64(p[at:], uint64(i+1)*0xd6e8feb86659fd93)
		r.in.datagram(p, from)
	}
}

// BenchmarkStranger is what a stranger's datagram costs an agent with ten thousand
// peers, from the socket's buffer to the drop counter.
func BenchmarkStranger(b *testing.B) {
	r := crowd()
	kinds := strangers()
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			r.stranger(kinds[name], b.N)
		})
	}
}

// A stranger's datagrams allocate nothing, and each is counted.
func TestAllocStrangers(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r := crowd()
	for name, p := range strangers() {
		before := r.allDropped()
		if n := testing.AllocsPerRun(100, func() { r.stranger(p, 10) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if n := r.allDropped() - before; n != 1010 {
			t.Errorf("%s: %d of 1010 counted", name, n)
		}
	}
	if len(r.events)+len(r.outside)+r.socket.calls != 0 {
		t.Errorf("%d events, %d from outside, %d writes", len(r.events), len(r.outside), r.socket.calls)
	}
}

// strangerGoal is how many nanoseconds a stranger's datagram may cost.
const strangerGoal = 60

// TestHostileStrangerCost: no kind of datagram that a stranger can send costs more
// than the goal. It is the least of five runs: the others are disturbed.
func TestHostileStrangerCost(t *testing.T) {
	if !hostile() || raceEnabled {
		t.Skip("measures: PILOT_HOSTILE=1, without the race detector")
	}
	r := crowd()
	kinds := strangers()
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		least := 1e9
		for range 5 {
			result := testing.Benchmark(func(b *testing.B) { r.stranger(kinds[name], b.N) })
			least = min(least, float64(result.T.Nanoseconds())/float64(result.N))
		}
		t.Logf("%-16s %5.1f ns", name, least)
		if least > strangerGoal {
			t.Errorf("%s: %.1f ns, want at most %d", name, least, strangerGoal)
		}
	}
}
