package rendezvous

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// A counter is a socket that counts the bytes to each address.
type counter struct {
	sink
	to map[netip.AddrPort]int
}

func (c *counter) WriteBatch(m []natt.Message) (int, error) {
	for i := range m {
		c.to[m[i].Addr] += len(m[i].Buf)
	}
	return len(m), nil
}

// Ten thousand agents are registered, a thousand of them receive over the relay
// at once, and one sender floods: it gets its quota and nothing more, and the
// others lose nothing.
func TestForwardFair(t *testing.T) {
	const (
		registered = 10_000
		active     = 1_000
		frame      = 1280
		ticks      = 200
		tick       = int64(10 * time.Millisecond)
	)
	key, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	out := &counter{to: make(map[netip.AddrPort]int, active)}
	s, err := New(Config{Key: key, Store: NewMemoryStore(), UDP: []natt.PacketConn{out}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	r := newReader(s, s.sockets[0])
	r.now = 1
	at := func(a, i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, byte(a), byte(i >> 8), byte(i)}), 4242)
	}
	var channels []*channel
	for i := range registered {
		home := &session{number: uint64(i + 1)}
		binary.BigEndian.PutUint32(home.agent[:], uint32(i+1))
		home.bind.Store(&binding{addr: at(18, i), sock: s.sockets[0]})
		s.table.homes[home.agent] = home
		s.table.sessions[home.number] = home
		if i < active {
			c := s.table.visit(binding{addr: at(19, i), sock: s.sockets[0]}, home.agent, 1, 1e6)
			c.answered.Store(true)
			c.proven.Store(true)
			channels = append(channels, c)
		}
	}
	buf := frames(0, 16, frame)
	send := func(c *channel, count int) {
		for j := range count {
			relay.PutFrameHeader(buf[j*frame:], c.visitorNumber)
		}
		m := natt.Message{Buf: buf, N: count * frame, Segment: frame, Addr: c.visitor.addr}
		r.message(&m)
		r.flush()
	}
	sent, began := 0, time.Now()
	var before, after runtime.MemStats
	for n := range ticks {
		if n == 1 { // everything has grown to its size
			runtime.ReadMemStats(&before)
		}
		r.now += tick
		for i, c := range channels {
			send(c, 4) // 512 kB/s, a twelfth of the quota
			sent += 4
			if i%10 == 0 { // between the others
				for range 3 {
					send(channels[0], 16)
					sent += 16
				}
			}
		}
	}
	runtime.ReadMemStats(&after)
	t.Logf("%d frames offered by %d senders: %.0f/s on one CPU", sent, active, float64(sent)/time.Since(began).Seconds())
	for i := 1; i < active; i++ {
		if got, want := out.to[at(18, i)], ticks*4*frame; got != want {
			t.Fatalf("%d bytes reached agent %d, want %d", got, i, want)
		}
	}
	rate := float64(s.cfg.Limits.ChannelRate)
	limit := rate*float64(ticks*tick)/1e9 + rate*float64(quotaBurst)/1e9
	if got := float64(out.to[at(18, 0)]); got > 1.05*limit || got < 0.9*limit {
		t.Errorf("the flood got %.0f bytes through, its quota is %.0f", got, limit)
	}
	if got := out.to[at(18, active)]; got != 0 {
		t.Errorf("an agent that nobody sent to received %d bytes", got)
	}
	if n := after.Mallocs - before.Mallocs; !raceEnabled && n > ticks {
		t.Errorf("%d allocations", n)
	}
}
