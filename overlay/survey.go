package overlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pilotnet/pilot/natt"
)

// surveyPort is asked beside a server's own: networks that let out little let
// out this.
const surveyPort = 443

// survey finds out how the NATs before this host behave, in half a second.
func survey(ctx context.Context, u Underlay, clock Clock, servers []netip.AddrPort, others []STUNServer) (natt.Facts, error) {
	var local []netip.Addr
	if ifaces, err := u.Interfaces(); err == nil {
		for _, p := range ifaces {
			local = append(local, p.Addr())
		}
	}
	all := slices.Clip(servers)
	for _, a := range stunTargets(ctx, u, others) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	targets := slices.Clip(all)
	for _, s := range servers {
		if a := netip.AddrPortFrom(s.Addr(), surveyPort); !slices.Contains(targets, a) {
			targets = append(targets, a)
		}
	}
	facts, err := runSurvey(ctx, u, clock, natt.NewMappingSurvey(clock.Now(), targets, local))
	if err != nil || len(facts.UDP) == 0 {
		return facts, err
	}
	// One after the other: a NAT that counts ports would be misread. And one port of
	// each server only: a question to the other would let its answer in.
	filtering, err := runSurvey(ctx, u, clock, natt.NewFilteringSurvey(clock.Now(), all))
	facts.Filtering = filtering.Filtering
	return facts, err
}

// A prober is a machine that sends questions from sockets of its own.
type prober interface {
	Advance(now time.Time) []natt.Datagram
	Receive(now time.Time, socket int, from netip.AddrPort, b []byte)
	Next() time.Time
	Done() bool
}

// surveyProber is a natt.Survey, which has one socket.
type surveyProber struct{ *natt.Survey }

func (s surveyProber) Receive(now time.Time, _ int, from netip.AddrPort, b []byte) {
	s.Survey.Receive(now, from, b)
}

// runSurvey drives one survey on a socket of its own.
func runSurvey(ctx context.Context, u Underlay, clock Clock, s *natt.Survey) (natt.Facts, error) {
	if err := runProber(ctx, u, clock, surveyProber{s}, 1); err != nil {
		return natt.Facts{}, err
	}
	return s.Facts(), nil
}

// proberBuffer takes any answer of a STUN server.
const proberBuffer = 2 << 10

// errSlept says that the machine slept while something was measured.
var errSlept = errors.New("overlay: the machine slept meanwhile")

// runProber drives a machine on new sockets until it is done.
func runProber(ctx context.Context, u Underlay, clock Clock, p prober, sockets int) error {
	type answer struct {
		socket int
		from   netip.AddrPort
		b      []byte
	}
	answers := make(chan answer, 32)
	var readers sync.WaitGroup
	var conns []natt.PacketConn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		readers.Wait()
	}()
	for i := range sockets {
		conn, err := u.ListenUDP(0)
		if err != nil {
			return err
		}
		conns = append(conns, conn)
		readers.Go(func() {
			m := []natt.Message{{Buf: make([]byte, proberBuffer)}}
			for {
				n, err := conn.ReadBatch(m)
				if err != nil {
					return
				}
				if n == 0 || m[0].N == 0 {
					continue
				}
				size := m[0].Segment
				if size <= 0 {
					size = m[0].N
				}
				for b := m[0].Buf[:m[0].N]; len(b) > 0; b = b[min(size, len(b)):] {
					select {
					case answers <- answer{i, m[0].Addr, append([]byte(nil), b[:min(size, len(b))]...)}:
					default: // an answer too many is lost like any datagram
					}
				}
			}
		})
	}
	began := instant{clock.Now(), clock.Boot()}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !p.Done() {
		now := clock.Now()
		if slept(began, instant{now, clock.Boot()}) {
			return errSlept
		}
		for _, d := range p.Advance(now) {
			_, _ = conns[d.Socket].WriteBatch([]natt.Message{{Buf: d.Data, Addr: d.To}}) // lost is unanswered
		}
		timer.Reset(max(p.Next().Sub(clock.Now()), time.Millisecond))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-answers:
			p.Receive(clock.Now(), a.socket, a.from, a.b)
		case <-timer.C:
		}
	}
	return nil
}

// surveyAgain renews the facts beside the loop: at the start, and when the
// network changed.
func (l *loop) surveyAgain() {
	var servers []netip.AddrPort
	for _, h := range l.servers {
		if a, ok := h.host.addr(); ok {
			servers = append(servers, a)
		}
	}
	if l.surveying || len(servers)+len(l.stun) == 0 {
		return
	}
	l.surveying = true
	l.jobs.do(func(ctx context.Context) {
		f, err := survey(ctx, l.underlay, l.clock, servers, l.stun)
		l.post(func(now instant) {
			l.surveying = false
			if err == nil {
				l.surveyEnded(now, f)
			}
		})
	})
}

// surveyEnded takes the outcome of a survey. One without any answer is not believed where
// a server is reached over UDP, and is repeated in any case: a machine that is busy
// with starting loses answers, or is late to read them.
func (l *loop) surveyEnded(now instant, f natt.Facts) {
	if len(f.UDP) > 0 {
		l.surveys = 0
		l.setFacts(now, f)
		return
	}
	if len(l.lifetimeServers()) == 0 {
		l.setFacts(now, f)
	}
	l.alarms.set(&l.resurvey, now.wall.Add(min(resurveyFirst<<min(l.surveys, 6), resurveyMost)))
	l.surveys++
}

const (
	resurveyFirst = time.Second // after a survey without an answer, doubled
	resurveyMost  = time.Minute
)

// Netcheck finds out, anew, how this host is connected.
func (n *Node) Netcheck(ctx context.Context) (Netcheck, error) {
	l := n.loop
	var servers []netip.AddrPort
	var r Netcheck
	err := l.call(ctx, func(now instant) {
		r.Servers, r.Lifetime = l.serverStatus(now), l.lifetimeStatus()
		r.PortMappings = []string{}
		for _, a := range l.mapped {
			r.PortMappings = append(r.PortMappings, a.String())
		}
		for _, h := range l.servers {
			if a, ok := h.host.addr(); ok {
				servers = append(servers, a)
			}
		}
	})
	if err != nil {
		return Netcheck{}, err
	}
	f, err := survey(ctx, n.cfg.Underlay, n.cfg.Clock, servers, n.cfg.STUN)
	if err != nil {
		return Netcheck{}, publicError(err)
	}
	_ = l.call(ctx, func(now instant) { l.setFacts(now, f) }) // the facts are shown all the same
	r.Mapping, r.Filtering, r.PortStep = f.Mapping.String(), f.Filtering.String(), f.Step
	r.UDP, r.UDPBlocked = ports(f.UDP), ports(f.Blocked)
	if f.Mapped.IsValid() {
		r.Mapped = f.Mapped.String()
	}
	r.STUN = []string{}
	for _, s := range n.cfg.STUN {
		r.STUN = append(r.STUN, s.String())
	}
	if len(servers)+len(n.cfg.STUN) > 0 && len(f.UDP) == 0 {
		r.Mapping, r.Filtering = "no-udp", "no-udp"
	}
	if ifaces, err := n.cfg.Underlay.Interfaces(); err == nil {
		for _, c := range natt.HostCandidates(ifaces, 1, netip.Prefix{}) {
			r.IPv6 = r.IPv6 || c.Addr.Addr().Is6() && !c.Addr.Addr().IsPrivate()
		}
	}
	return r, nil
}

func ports(list []uint16) []uint16 {
	if list == nil {
		return []uint16{}
	}
	return list
}
