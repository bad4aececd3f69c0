package natt

import (
	"testing"
	"time"
)

// BenchmarkAgentFlow is what a peer with a direct path costs each time that its owner reports traffic.
func BenchmarkAgentFlow(b *testing.B) {
	w := newWorld(b, 1, natPort, natPort)
	w.connect()
	w.run(time.Second)
	if !w.bothDirect() {
		b.Fatal("not direct")
	}
	a, now := w.nodes[0].agent, w.now
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(ActiveEvery)
		a.Active(now, true, true)
		for _, act := range a.Advance(now) {
			if act.Kind == ActChallenge {
				a.Responded(now, act.Path, act.Token)
			}
		}
		a.Next()
	}
}

// BenchmarkAgentMemory is what the agent of one peer with a relay and a direct path takes.
func BenchmarkAgentMemory(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		a := NewAgent(AgentConfig{})
		now := epoch
		a.Connected(now, Path{Remote: relayAddr(0), Channel: 1})
		a.SetRemote(now, []Candidate{{Observed, relayAddr(9)}})
		for _, act := range a.Advance(now) {
			if act.Kind == ActChallenge {
				a.Responded(now.Add(ms), act.Path, act.Token)
			}
		}
		a.Advance(now.Add(time.Second))
	}
}
