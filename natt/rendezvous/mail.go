package rendezvous

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// put handles a PUT: stamp, then whether the recipient is at home here, then the disk.
func (s *Server) put(from netip.Addr, r relay.Request) (relay.Status, string) {
	if len(r.Body) == 0 {
		return relay.StatusRefused, "the mail is empty"
	}
	if !r.Stamp.Check(s.public, relay.OpPut, relay.MailSubject(r.To, r.Body), s.cfg.Limits.MailBits, s.cfg.Now()) {
		return relay.StatusStamp, "the stamp is too weak, or older than ten minutes by the server's clock"
	}
	if _, err := s.store.Agent(r.To); errors.Is(err, ErrNotFound) {
		return relay.StatusNotFound, "no agent of this fingerprint has claimed an address on this server"
	} else if err != nil {
		return s.storeFailed(err)
	}
	m := Mail{Received: s.cfg.Now(), Bucket: s.bucket(r.To, from), Body: r.Body}
	if _, err := s.store.Put(r.To, m, s.cfg.Limits.Mailbox); err != nil {
		return s.storeFailed(err)
	}
	s.count.mail.Add(1)
	if home := s.table.home(r.To); home != nil {
		home.mail.Store(true)
		home.notify(relay.NoticeMail)
		s.wakeNotices(home)
	}
	return relay.StatusOK, ""
}

// bucket blinds a sender's network: it is different for every recipient and
// after every start, so what is stored tells nobody where mail came from.
func (s *Server) bucket(to crypto.Fingerprint, from netip.Addr) uint32 {
	h := hmac.New(sha256.New, s.blind[:])
	n := network(from)
	h.Write(to[:])
	h.Write(n[:])
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// list handles a LIST: as many items as fit an answer.
func (s *Server) list(peer relay.ControlPeer, r relay.Request) (items []relay.Item, more bool, status relay.Status, text string) {
	if status, text := s.atHome(peer); status != relay.StatusOK {
		return nil, false, status, text
	}
	const perAnswer = relay.MaxAnswer / (relay.MaxObject + 64)
	mail, err := s.store.Mail(peer.Fingerprint, r.After, perAnswer+1)
	if err != nil {
		status, text = s.storeFailed(err)
		return nil, false, status, text
	}
	if more = len(mail) > perAnswer; more {
		mail = mail[:perAnswer]
	}
	for _, m := range mail {
		items = append(items, relay.Item{ID: m.ID, Body: m.Body})
	}
	s.count.mailFetched.Add(uint64(len(items)))
	return items, more, relay.StatusOK, ""
}

// ack handles an ACK.
func (s *Server) ack(peer relay.ControlPeer, r relay.Request) (relay.Status, string) {
	if status, text := s.atHome(peer); status != relay.StatusOK {
		return status, text
	}
	if err := s.store.Ack(peer.Fingerprint, r.IDs...); err != nil {
		return s.storeFailed(err)
	}
	if home := s.table.home(peer.Fingerprint); home != nil {
		home.mail.Store(s.hasMail(peer.Fingerprint))
	}
	return relay.StatusOK, ""
}

// atHome checks that an agent is who it says: that it holds the registration key
// of the claim it names.
func (s *Server) atHome(peer relay.ControlPeer) (relay.Status, string) {
	a, err := s.store.Agent(peer.Fingerprint)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && a.Registration != peer.Static:
		return relay.StatusNotFound, "this registration key is not known here, claim first"
	case err != nil:
		return s.storeFailed(err)
	}
	return relay.StatusOK, ""
}

func (s *Server) hasMail(fp crypto.Fingerprint) bool {
	m, err := s.store.Mail(fp, 0, 1)
	return err == nil && len(m) > 0
}

// A noticeboard holds the sessions with notices to repeat.
type noticeboard struct {
	mu       sync.Mutex
	sessions map[*session]bool
}

const noticeInterval = 700 * time.Millisecond

// wakeNotices sends what is due to sess now and has it repeated.
func (s *Server) wakeNotices(sess *session) {
	s.board.mu.Lock()
	s.board.sessions[sess] = true
	s.board.mu.Unlock()
	s.sendNotices(sess)
}

// sendNotices sends the notices that are due and reports whether there were any.
func (s *Server) sendNotices(sess *session) bool {
	codes := sess.due()
	for _, code := range codes {
		r := relay.Record{Kind: relay.Notice, Echo: code, Time: s.cfg.Now()}
		if b, err := relay.AppendRecord(nil, sess.number, sess.tr, r); err == nil {
			s.write(*sess.bind.Load(), b)
		}
	}
	return len(codes) > 0
}

// noticeLoop repeats notices until they are answered or were sent often enough.
func (s *Server) noticeLoop(ctx context.Context) {
	t := time.NewTicker(noticeInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		s.board.mu.Lock()
		var waiting []*session
		for sess := range s.board.sessions {
			waiting = append(waiting, sess)
		}
		s.board.mu.Unlock()
		for _, sess := range waiting {
			if !s.sendNotices(sess) {
				s.board.mu.Lock()
				delete(s.board.sessions, sess)
				s.board.mu.Unlock()
			}
		}
	}
}
