package relay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// A scene is a server behind a firewall, in virtual time: what gets through, and
// how long that takes.
type scene struct {
	t        *testing.T
	l        *Ladder
	now      time.Time
	begin    time.Time
	through  map[Rung]bool
	refused  map[uint16]bool // ports whose dials fail at once
	refusing map[Rung]bool   // and rungs
	rtt      time.Duration
	slower   time.Duration // by so much is the own port slower than 443
	answers  []answer
	open     map[int]Rung
	used     map[int]uint16
	log      []string
}

type answer struct {
	at time.Time
	do func()
}

func newScene(t *testing.T, cfg LadderConfig, through ...Rung) *scene {
	s := &scene{t: t, l: NewLadder(cfg), begin: time.Unix(1e9, 0), rtt: 40 * time.Millisecond,
		through: map[Rung]bool{}, refused: map[uint16]bool{}, open: map[int]Rung{}, used: map[int]uint16{}}
	s.now = s.begin
	for _, r := range through {
		s.through[r] = true
	}
	return s
}

func (s *scene) after(d time.Duration, do func()) {
	s.answers = append(s.answers, answer{s.now.Add(d), do})
}

// ask sends a question by the way in use, as a HELLO or PING is.
func (s *scene) ask() {
	s.l.Asked(s.now)
	r := s.l.Rung()
	if s.through[r] {
		s.after(s.rtt, func() { s.l.Heard(s.now, r) })
	}
}

func (s *scene) act(a LadderAction) {
	at := s.now.Sub(s.begin).Milliseconds()
	note := func(format string, args ...any) {
		s.log = append(s.log, fmt.Sprintf("%d ", at)+fmt.Sprintf(format, args...))
	}
	switch a.Kind {
	case LadderProbe:
		note("probe %d", a.Port)
		if s.through[a.Rung] {
			wait := s.rtt
			if a.Rung == RungUDP {
				wait += s.slower
			}
			s.after(wait, func() { s.l.Heard(s.now, a.Rung) })
		}
	case LadderDial:
		note("dial %v %d", a.Rung, a.Port)
		s.open[a.ID], s.used[a.ID] = a.Rung, a.Port
		switch {
		case s.refused[a.Port] || s.refusing[a.Rung]:
			s.after(s.rtt, func() {
				if _, still := s.open[a.ID]; still {
					delete(s.open, a.ID)
					s.l.Failed(s.now, a.ID)
				}
			})
		case s.through[a.Rung]:
			s.after(3*s.rtt, func() {
				if _, still := s.open[a.ID]; still {
					s.l.Opened(s.now, a.ID)
				}
			})
		default:
			s.after(5*time.Second, func() {
				if _, still := s.open[a.ID]; still {
					delete(s.open, a.ID)
					s.l.Failed(s.now, a.ID)
				}
			})
		}
	case LadderUse:
		note("use %v", a.Rung)
	case LadderLeave:
		note("leave %d", a.ID)
	case LadderClose:
		if _, ok := s.open[a.ID]; !ok {
			s.t.Errorf("closes %d, which is not open", a.ID)
		}
		note("close %v %d", s.open[a.ID], s.used[a.ID])
		delete(s.open, a.ID)
	}
}

// run lets time pass.
func (s *scene) run(d time.Duration) {
	end := s.now.Add(d)
	for range 100000 {
		for _, a := range s.l.Advance(s.now) {
			s.act(a)
		}
		next := end
		if n := s.l.Next(); !n.IsZero() && n.Before(next) {
			next = n
		}
		i := -1
		for k, a := range s.answers {
			if !a.at.After(next) && (i < 0 || a.at.Before(s.answers[i].at)) {
				i = k
			}
		}
		if i >= 0 && !s.answers[i].at.After(next) {
			a := s.answers[i]
			s.answers = slices.Delete(s.answers, i, i+1)
			s.now = maxTime(s.now, a.at)
			a.do()
			continue
		}
		s.now = maxTime(s.now, next)
		if !s.now.Before(end) {
			for _, a := range s.l.Advance(s.now) {
				s.act(a)
			}
			return
		}
	}
	s.t.Fatal("the ladder does not stand still")
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s *scene) want(log ...string) {
	s.t.Helper()
	if !slices.Equal(s.log, log) {
		s.t.Errorf("did\n\t%s\nwant\n\t%s", strings.Join(s.log, "\n\t"), strings.Join(log, "\n\t"))
	}
	s.log = nil
}

func TestLadderClimbs(t *testing.T) {
	all := LadderConfig{Port: 3478, Proxy: true}
	for name, c := range map[string]struct {
		cfg     LadderConfig
		through []Rung
		want    []string
	}{
		"open": {all, []Rung{RungUDP, RungUDP443, RungTLS, RungProxy}, nil},
		"udp 443": {all, []Rung{RungUDP443, RungTLS}, []string{
			"200 probe 3478", "200 probe 443", "290 use udp-443", "2290 leave 0"}},
		"tls": {all, []Rung{RungTLS}, []string{
			"200 probe 3478", "200 probe 443", "400 dial tls 443", "520 use tls",
			"520 probe 3478", "520 probe 443", "720 probe 3478", "720 probe 443", "1120 probe 3478", "1120 probe 443",
			"2020 probe 3478", "2020 probe 443", "2520 leave 0"}},
		"proxy": {all, []Rung{RungProxy}, []string{
			"200 probe 3478", "200 probe 443", "400 dial tls 443", "600 dial tls 3478", "600 dial proxy 443", "600 probe 3478", "600 probe 443",
			"720 use proxy", "720 probe 3478", "720 probe 443", "920 probe 3478", "920 probe 443", "1320 probe 3478", "1320 probe 443",
			"2220 probe 3478", "2220 probe 443", "2720 leave 0"}},
		"own port is 443": {LadderConfig{Port: 443}, []Rung{RungTLS}, []string{
			"200 probe 443", "400 dial tls 443", "520 use tls", "520 probe 443", "720 probe 443", "1120 probe 443", "2020 probe 443", "2520 leave 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.cfg, c.through...)
			s.ask()
			s.run(4 * time.Second)
			s.want(c.want...)
		})
	}
}

// A refused dial does not cost the wait of its rung, and a server that is down is
// asked again, ever more rarely, as long as somebody wants it.
func TestLadderServerDown(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478})
	s.refused[443], s.refused[3478] = true, true
	s.ask()
	s.run(time.Second)
	s.want("200 probe 3478", "200 probe 443", "400 dial tls 443", "440 dial tls 3478", "440 probe 3478", "440 probe 443")
	for range 60 {
		s.ask()
		s.run(time.Second)
	}
	dials := 0
	for _, line := range s.log {
		if strings.Contains(line, "dial tls 443") {
			dials++
		}
	}
	if dials < 4 || dials > 8 {
		t.Errorf("%d climbs in a minute: %v", dials, s.log)
	}
	s.log = nil
	s.run(time.Minute)
	n := len(s.log)
	s.run(time.Hour)
	if len(s.log) != n {
		t.Errorf("it goes on although nobody asks: %v", s.log[n:])
	}
}

// One lost question costs two small ones and no dial.
func TestLadderLoss(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungUDP, RungTLS)
	s.l.Asked(s.now)
	s.run(time.Second)
	s.want("200 probe 3478", "200 probe 443")
	if s.l.Climbing() {
		t.Error("still in doubt")
	}
}

// A slow way is not a dead one: once the round trip is known it is waited for.
func TestLadderSlow(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungUDP, RungTLS)
	s.rtt = 700 * time.Millisecond
	s.ask()
	s.run(20 * time.Second)
	s.log = nil
	if s.l.Rung() != RungUDP {
		t.Fatalf("on %v", s.l.Rung())
	}
	for range 10 {
		s.ask()
		s.run(20 * time.Second)
	}
	s.want()
}

// UDP is blocked while it is in use, and comes back.
func TestLadderBlockedAndBack(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungUDP, RungTLS)
	s.ask()
	s.run(time.Minute)
	s.want()
	s.begin = s.now
	s.through[RungUDP] = false
	s.ask()
	s.run(10 * time.Second)
	if got := s.log[:4]; !slices.Equal(got, []string{"200 probe 3478", "200 probe 443", "400 dial tls 443", "520 use tls"}) {
		t.Errorf("%v", got)
	}
	s.log, s.begin = nil, s.now
	s.through[RungUDP] = true
	s.ask()
	s.run(30 * time.Second)
	// 520 ms and 25 s after its start the stream is doubted; 10 s of that were over.
	s.want("15520 probe 3478", "15520 probe 443", "15560 use udp", "17560 leave 1", "19560 close tls 443")
}

// Both UDP ports come back, and 443 answers first, while the stream answers too:
// the own port is used. If only 443 comes back that is.
func TestLadderBackTo443(t *testing.T) {
	for _, both := range []bool{true, false} {
		s := newScene(t, LadderConfig{Port: 3478}, RungTLS)
		s.ask()
		s.run(10 * time.Second)
		s.through[RungUDP], s.through[RungUDP443], s.slower = both, true, time.Millisecond
		for range 300 {
			s.ask()
			s.run(100 * time.Millisecond)
		}
		want := map[bool]Rung{true: RungUDP, false: RungUDP443}[both]
		if s.l.Rung() != want {
			t.Errorf("on %v, want %v", s.l.Rung(), want)
		}
	}
}

// The stream dies: the next climb begins with streams.
func TestLadderStreamBreaks(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungTLS)
	s.ask()
	s.run(5 * time.Second)
	s.log, s.begin = nil, s.now
	for id := range s.open {
		delete(s.open, id)
		s.l.Failed(s.now, id)
	}
	s.ask()
	s.run(150 * time.Millisecond)
	s.want("0 use udp", "0 dial tls 443", "120 use tls", "120 probe 3478", "120 probe 443")

	// It only falls silent: after a second another is opened in its place.
	s.run(5 * time.Second)
	s.log, s.begin = nil, s.now
	s.l.Asked(s.now)
	s.run(6 * time.Second)
	if got := s.log; len(got) < 4 || got[0] != "1000 probe 3478" || got[2] != "1200 dial tls 443" || got[3] != "1320 use tls" || !slices.Contains(got, "5320 close tls 443") {
		t.Errorf("%v", got)
	}
	if len(s.open) != 1 {
		t.Errorf("%d streams are open", len(s.open))
	}
}

// Where UDP is known to be blocked a stream is opened at once.
func TestLadderHurries(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungTLS)
	s.l.Hurry(RungTLS)
	s.ask()
	s.run(150 * time.Millisecond)
	s.want("0 probe 3478", "0 probe 443", "0 dial tls 443", "120 use tls", "120 probe 3478", "120 probe 443")
	s.run(10 * time.Second)
	s.log = nil
	s.l.Release(s.now)
	s.run(10 * time.Second)
	if len(s.open) != 0 || s.l.Rung() != RungUDP {
		t.Errorf("on %v with %d streams after release: %v", s.l.Rung(), len(s.open), s.log)
	}
}

// UDP that answers tests and nothing else is tested ever more rarely.
func TestLadderFlapping(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478}, RungTLS)
	s.ask()
	s.run(5 * time.Second)
	changes := 0
	for range 600 { // an hour
		s.ask()
		if s.l.Rung() == RungUDP {
			s.through[RungUDP] = false
		}
		s.run(3 * time.Second)
		s.through[RungUDP] = true
		s.log = slices.DeleteFunc(s.log, func(line string) bool { return !strings.HasSuffix(line, "use udp") })
		changes += len(s.log)
		s.log = nil
		s.run(3 * time.Second)
	}
	if changes > 100 {
		t.Errorf("%d times to UDP in an hour", changes)
	}
}

// Whatever happens, the way in use is open or is UDP, streams do not pile up, and
// the ladder comes to rest on the best way that works.
func TestLadderRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newScene(t, LadderConfig{Port: 3478, Proxy: seed%2 == 0})
		rungs := []Rung{RungUDP, RungUDP443, RungTLS, RungProxy}
		for range 60 {
			s.through[rungs[r.IntN(4)]] = r.IntN(2) == 0
			s.refused[[]uint16{443, 3478}[r.IntN(2)]] = r.IntN(4) == 0
			switch r.IntN(6) {
			case 0:
				s.l.Changed(s.now)
			case 1:
				s.l.Hurry(rungs[r.IntN(4)])
			case 2:
				for id := range s.open {
					delete(s.open, id)
					s.l.Failed(s.now, id)
					break
				}
			default:
				s.ask()
			}
			s.run(time.Duration(r.IntN(3000)) * time.Millisecond)
			if s.l.Rung().Stream() && s.open[s.l.id] != s.l.Rung() {
				t.Fatalf("seed %d: on %v, which is not open", seed, s.l.Rung())
			}
			if len(s.open) > 10 {
				t.Fatalf("seed %d: %d streams", seed, len(s.open))
			}
		}
		clear(s.refused)
		s.through = map[Rung]bool{RungUDP: true, RungTLS: true}
		for range 100 {
			s.ask()
			s.run(20 * time.Second)
		}
		if s.l.Rung() != RungUDP || len(s.open) != 0 {
			t.Fatalf("seed %d: ends on %v with %d streams", seed, s.l.Rung(), len(s.open))
		}
	}
}

// A proxy that refuses at first, since it has not started yet, is asked again while what
// the firewall swallows is still being dialled.
func TestLadderProxyIsLate(t *testing.T) {
	s := newScene(t, LadderConfig{Port: 3478, Proxy: true}, RungProxy)
	s.refusing = map[Rung]bool{RungProxy: true}
	s.ask()
	s.run(900 * time.Millisecond)
	if s.l.Rung() == RungProxy {
		t.Fatal("nothing was refused")
	}
	s.refusing = nil
	s.run(2 * time.Second)
	if s.l.Rung() != RungProxy {
		t.Errorf("by %v: %s", s.l.Rung(), strings.Join(s.log, "; "))
	}
}
