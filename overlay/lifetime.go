package overlay

import (
	"context"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// lifetime finds out, over minutes and beside everything else, how long the NAT keeps
// a mapping, so that home servers are sent no more than that needs.
type lifetime struct {
	natt.Lifetime
	alarm  alarm
	cancel context.CancelFunc // ends the measurement under way; nil: there is none
	begun  int                // measurements, so that the outcome of one that was ended is not taken
	turn   int                // which server is asked next
}

// lifetimePause is how long after a change the first measurement begins.
const lifetimePause = 5 * time.Second

// A LifetimeStatus says what is known of how long the NAT keeps a mapping.
type LifetimeStatus struct {
	State   string  `json:"state"`             // "known", "measuring", "unknown"
	AtLeast float64 `json:"at_least_s"`        // silence that a mapping outlived, seconds; 0: none known
	Below   float64 `json:"below_s,omitempty"` // silence that it did not
	Beat    float64 `json:"keepalive_s"`       // how long home servers are left without a packet at most
	Reason  string  `json:"reason,omitempty"`  // why it is unknown
}

func (l *loop) lifetimeStatus() LifetimeStatus {
	low, high := l.life.Known()
	s := LifetimeStatus{
		State: "measuring", AtLeast: low.Seconds(), Below: high.Seconds(),
		Beat: relay.DefaultKeepalive.Seconds(), Reason: l.life.Trouble(),
	}
	if k := l.life.Keepalive(); k != 0 {
		s.Beat = k.Seconds()
	}
	switch {
	case l.life.Settled():
		s.State = "known"
	case s.Reason != "":
		s.State = "unknown"
	case len(l.lifetimeServers()) == 0:
		s.State, s.Reason = "unknown", "no home server is reached over UDP"
	}
	return s
}

// lifetimeServers are those that can be asked.
func (l *loop) lifetimeServers() []netip.AddrPort {
	var list []netip.AddrPort
	for _, h := range l.servers {
		if a, ok := h.host.addr(); ok && h.machine.Registered() && !h.host.ladder.Rung().Stream() && !h.host.standIn {
			list = append(list, netip.AddrPortFrom(a.Addr(), h.host.port))
		}
	}
	return list
}

// restartLifetime forgets what was measured: the network is another.
func (l *loop) restartLifetime(now instant) {
	l.life.Reset(now.wall, lifetimePause)
	l.stopLifetime(now)
}

// distrustLifetime acts on a mapping that was lost although it should have lived.
func (l *loop) distrustLifetime(now instant) {
	if l.life.Keepalive() == 0 {
		return
	}
	l.log.Info("a NAT mapping did not live as long as was measured", "keepalive", l.life.Keepalive())
	l.life.Fell(now.wall)
	l.stopLifetime(now)
}

func (l *loop) stopLifetime(now instant) {
	if l.life.cancel != nil {
		l.life.cancel()
		l.life.cancel = nil
	}
	l.setKeepalive(now)
	l.alarms.set(&l.life.alarm, l.life.Next())
}

// setKeepalive tells the home sessions what was found.
func (l *loop) setKeepalive(now instant) {
	for _, h := range l.servers {
		h.machine.SetKeepalive(now.wall, l.life.Keepalive())
		h.advance(now)
	}
}

// measureLifetime begins the measurement that is due.
func (l *loop) measureLifetime(now instant) {
	servers := l.lifetimeServers()
	if l.life.cancel != nil {
		return
	}
	if len(servers) == 0 {
		l.alarms.set(&l.life.alarm, now.wall.Add(lifetimePause))
		return
	}
	idle := l.life.Step(now.wall)
	test := natt.NewLifetimeTest(now.wall, servers[l.life.turn%len(servers)], idle)
	ctx, cancel := context.WithCancel(l.jobs.ctx)
	l.life.cancel = cancel
	l.life.begun++
	number := l.life.begun
	l.jobs.do(func(context.Context) {
		defer cancel()
		err := runProber(ctx, l.underlay, l.clock, test, 2)
		l.post(func(now instant) {
			if l.life.cancel == nil || l.life.begun != number {
				return // ended, and the alarm is set to begin anew
			}
			l.life.cancel = nil
			result, _ := test.Result()
			if err != nil {
				result = natt.LifetimeUnclear
			}
			if result == natt.LifetimeNoHelp && l.life.turn+1 < len(servers) {
				l.life.turn++ // another one may
				result = natt.LifetimeUnclear
			}
			changed := l.life.Told(now.wall, result, idle)
			low, high := l.life.Known()
			l.log.Debug("lifetime of mappings", "silence", idle, "alive", result == natt.LifetimeAlive,
				"at least", low, "below", high, "trouble", l.life.Trouble())
			if changed {
				l.setKeepalive(now)
			}
			l.alarms.set(&l.life.alarm, l.life.Next())
		})
	})
}
