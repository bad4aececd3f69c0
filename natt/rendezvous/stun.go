package rendezvous

import (
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/stun"
)

// stun answers a STUN Binding request. Its source is not proven, so it is rate
// limited and the answer never longer than the request asks for.
func (r *reader) stun(m *natt.Message, d []byte) {
	if !stun.Is(d) || !r.s.stuns.allow(r.now, m.Addr.Addr()) {
		r.s.count.malformed.Add(1)
		return
	}
	b, ok := stun.Answer(make([]byte, 0, stun.MaxAnswer), d, m.Addr)
	if !ok {
		r.s.count.malformed.Add(1)
		return
	}
	r.s.count.stun.Add(1)
	r.reply(m, b)
}
