package overlay

import (
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

// The oldest packets go first, by number and by bytes.
func TestStage(t *testing.T) {
	var s stage
	for i := range stagePackets + 10 {
		if dropped := s.push([]byte{byte(i)}); dropped != max(0, min(1, i-stagePackets+1)) {
			t.Errorf("packet %d: %d dropped", i, dropped)
		}
	}
	p := s.take()
	if len(p) != stagePackets || p[0][0] != 10 || s.bytes != 0 || len(s.take()) != 0 {
		t.Errorf("%d packets, the first is %d", len(p), p[0][0])
	}
	dropped := 0
	for range 5 {
		dropped += s.push(make([]byte, stageBytes/4))
	}
	if dropped != 1 || s.bytes != stageBytes {
		t.Errorf("%d dropped, %d bytes", dropped, s.bytes)
	}
	if s.push(make([]byte, stageBytes)) != 4 {
		t.Error("a large packet does not push the others out")
	}
	b := []byte{1, 2, 3}
	s.take()
	s.push(b)
	b[0] = 9
	if s.take()[0][0] != 1 {
		t.Error("the stage does not copy")
	}
}

func TestSessionTable(t *testing.T) {
	table := newSessionTable(8)
	at := func(i uint32) *sessionEntry { return &sessionEntry{Session: crypto.NewSession(crypto.Keys{}, i, 0)} }
	a, b := at(0x1003), at(0x2004)
	table.put(a)
	table.put(b)
	for i, want := range map[uint32]*sessionEntry{0x1003: a, 0x2004: b, 3: nil, 0x2003: nil, 0x100b: nil, 5: nil, 0xffffffff: nil} {
		if got := table.get(i); got != want {
			t.Errorf("get(%#x) = %v", i, got)
		}
	}
	for i, want := range map[uint32]bool{0x1003: false, 0xb: false, 0x2005: true} {
		if table.free(i) != want {
			t.Errorf("free(%#x) = %v", i, !want)
		}
	}
	table.remove(at(0x1003)) // another session with that index
	if table.get(0x1003) != a {
		t.Error("removing another session removed this one")
	}
	table.remove(a)
	if table.get(0x1003) != nil || !table.free(0x1003) {
		t.Error("a removed session is found")
	}
}

// In a node's table indices stay free of each other while it grows.
func TestSessionTableGrows(t *testing.T) {
	r := newRig(1, &sinkDevice{})
	l := &loop{plane: r.plane, waits: map[uint32]*link{}}
	k := &link{peer: r.know(2), loop: l}
	l.links = map[crypto.PublicKey]*link{{1}: k}
	for range 1000 {
		k.newSession(instant{}, crypto.NewSession(crypto.Keys{}, l.newIndex(), 0), &slotState{}, true)
	}
	table := r.snapshot.Load().sessions
	if len(table.entries) < 1000 {
		t.Errorf("%d entries for 1000 sessions", len(table.entries))
	}
	for _, s := range k.sessions {
		if table.get(s.Local()) != s.sessionEntry {
			t.Fatalf("session %#x is not found", s.Local())
		}
	}
	for len(k.sessions) > 0 {
		k.remove(k.sessions[0])
	}
	for i := range table.entries {
		if table.entries[i].Load() != nil {
			t.Fatalf("entry %d is left", i)
		}
	}
}
