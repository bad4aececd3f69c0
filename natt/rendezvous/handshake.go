package rendezvous

import (
	"context"
	"errors"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// A job is a HELLO or VISIT that passed the cheap checks.
type job struct {
	msg  []byte
	from binding
}

// loaded reports whether so many handshakes wait that sources must prove
// themselves by a cookie first.
func (s *Server) loaded() bool { return len(s.work) > cap(s.work)/2 || s.alwaysCookie.Load() }

// worker does handshakes, one at a time.
func (s *Server) worker(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.work:
			s.handshake(j)
		}
	}
}

func (s *Server) handshake(j job) {
	a, err := relay.Accept(s.cfg.Key, j.msg)
	if err != nil {
		s.count.malformed.Add(1)
		return
	}
	if j.msg[0] == relay.TypeVisit {
		s.visit(j, a)
		return
	}
	s.hello(j, a)
}

func (s *Server) hello(j job, a *relay.Accepted) {
	s.count.hellos.Add(1)
	w := relay.Welcome{Time: s.cfg.Now(), Observed: j.from.addr}
	agent, err := s.store.Agent(a.Hello.Fingerprint)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && agent.Registration != a.Static:
		w.Status = relay.StatusUnknown
		s.count.refused.Add(1)
	case err != nil:
		s.cfg.Logger.Error("read agent", "err", err)
		return
	}
	sess := &session{agent: a.Hello.Fingerprint, instance: a.Hello.Instance}
	if !a.Hello.Started.IsZero() {
		sess.started = uint64(a.Hello.Started.UnixMilli())
	}
	if w.Status == relay.StatusWelcome {
		switch s.standing(sess, a.Hello.Flags) {
		case waits:
			return
		case superseded:
			w.Status = relay.StatusSuperseded
			s.count.refused.Add(1)
		}
	}
	if w.Status == relay.StatusWelcome {
		sess.number = number()
		w.Number = sess.number
	}
	answer, err := a.Answer(w)
	if err != nil {
		return
	}
	if w.Status == relay.StatusWelcome {
		if sess.tr, err = a.Transport(); err != nil {
			return
		}
		sess.bind.Store(&j.from)
		sess.used.Store(s.cfg.Now().UnixNano())
		sess.mail.Store(s.hasMail(sess.agent))
		if !s.table.add(sess, s.cfg.Limits.Sessions) {
			s.count.limited.Add(1)
			return
		}
	}
	s.write(j.from, answer)
}

// standing compares sess with the registered session of the same agent. A
// takeover, or the heir of a silent instance, counts as started just after it.
func (s *Server) standing(sess *session, flags relay.HelloFlags) standing {
	cur := s.table.home(sess.agent)
	if cur == nil {
		return displaces
	}
	if cur.instance == sess.instance {
		sess.started = cur.started
		return displaces
	}
	if sess.newer(cur) {
		return displaces
	}
	if flags&relay.FlagTakeover == 0 {
		if st := cur.contest(s.cfg.Now().UnixNano()); st != displaces {
			s.sendNotices(cur)
			return st
		}
	}
	sess.started = cur.started + 1
	return displaces
}

// confirm makes a session current, on its first record.
func (s *Server) confirm(sess *session) {
	displaced := s.table.promote(sess)
	if displaced == nil {
		return
	}
	displaced.mu.Lock()
	displaced.superseded = true
	displaced.mu.Unlock()
	displaced.notify(relay.NoticeSuperseded)
	s.wakeNotices(displaced)
}

func (s *Server) visit(j job, a *relay.Accepted) {
	s.count.visits.Add(1)
	now := s.cfg.Now()
	c := s.table.visit(j.from, a.Visit.Target, now.UnixNano(), s.cfg.Limits.Channels)
	if c == nil {
		s.count.limited.Add(1)
		return
	}
	home := s.table.home(a.Visit.Target)
	observed := j.from.addr
	if a.Visit.Ask {
		c.asked.Store(true)
		observed = c.whereTarget(home)
	}
	answer, err := a.Answer(relay.Welcome{Number: c.visitorNumber, Time: now, Observed: observed})
	if err != nil {
		return
	}
	s.write(j.from, answer)
	if len(a.Visit.Inner) == 0 || a.Visit.Inner[0] == 0 || home == nil {
		return
	}
	if !c.toTarget.young.allow(now.UnixNano(), probationCost, probationBurst) {
		s.count.dropped.Add(1)
		return
	}
	frame := make([]byte, relay.FrameOverhead, relay.FrameOverhead+relay.MaxInner)
	relay.PutFrameHeader(frame, c.targetNumber)
	s.count.frames.Add(1)
	s.write(*home.bind.Load(), append(frame, a.Visit.Inner...))
}

// write sends one datagram to where somebody is reached.
func (s *Server) write(to binding, b []byte) {
	m := [1]natt.Message{{Buf: b, Addr: to.addr, Local: to.local}}
	if _, err := to.sock.conn.WriteBatch(m[:]); err != nil {
		s.count.sendErrors.Add(1)
	}
}
