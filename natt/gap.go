package natt

import "time"

// aroundChange is how long before and after a change of path a silence is put down to it.
const aroundChange = 5 * time.Second

// silence measures for how long nothing authenticated came from the peer while data flowed.
type silence struct {
	heard   time.Time     // the last sign of the peer; zero: none, or nothing flowed since
	longest time.Duration // of late
	at      time.Time     // when longest ended
	gap     time.Duration // around the last change
	changed time.Time     // the last change from one path to another; zero: none
}

// sign notes a sign of the peer that came at some moment of the time before now.
func (s *silence) sign(now time.Time, before time.Duration) {
	if !s.heard.IsZero() {
		d := max(now.Sub(s.heard)-before, 0)
		if now.Sub(s.at) > aroundChange || d >= s.longest {
			s.longest, s.at = d, now
		}
		if !s.changed.IsZero() && now.Sub(s.changed) <= aroundChange {
			s.gap = max(s.gap, d)
		}
	}
	s.heard = now
}

// change notes that data takes another path.
func (s *silence) change(now time.Time) {
	s.changed, s.gap = now, 0
	if s.heard.IsZero() {
		return
	}
	if now.Sub(s.at) <= aroundChange {
		s.gap = s.longest
	}
	s.gap = max(s.gap, now.Sub(s.heard)-ActiveEvery)
}

// sign notes a sign of the peer. Without data nothing was expected.
func (a *Agent) sign(before time.Duration) {
	if !a.flowing() {
		a.silence.heard = a.now
		return
	}
	a.silence.sign(a.now, before)
}
