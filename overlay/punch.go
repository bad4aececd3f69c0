package overlay

import (
	"github.com/pilotnet/pilot/natt"
)

// blank is what an opener carries: nothing that anybody answers.
var blank = []byte{0}

// open sends a packet that opens our NATs and dies before the peer's. Where the
// system cannot do that, nothing is sent.
func (l *loop) open(p natt.Path, ttl int) {
	if conn, ok := l.socket(p.Socket).(natt.TTLWriter); ok {
		if _, err := conn.WriteTTL([]natt.Message{{Buf: blank, Addr: p.Remote}}, ttl); err != nil {
			l.drops.add(dropOutSend)
		}
	}
}

// setFacts takes the outcome of a survey.
func (l *loop) setFacts(now instant, f natt.Facts) {
	l.facts, l.surveyed = f, now.wall
	for _, k := range l.links {
		k.agent.SetTraits(now.wall, f.Traits())
		if k.active != nil {
			k.advance(now)
		}
	}
}
