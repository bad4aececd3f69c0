package overlay

import (
	"context"
	"time"

	"github.com/pilotnet/pilot/trust"
)

// Mail that was at a server is lost with it, and what a state forgot may still be held by
// the peer. So each new session says which terms of the peer we hold (an item of kind
// itemTerms, a trust.Held); a peer that has others in force mails them once more.

const termsEvery = 30 * time.Second // terms are said again to a peer this often

// greetTerms tells the peer which of its terms we hold.
func (k *link) greetTerms() {
	if held, ok := k.loop.store.Holds(k.key); ok {
		k.item(itemTerms, held[:])
	}
}

// heldTerms takes which terms of ours the peer holds. It writes, so it runs beside the loop.
func (k *link) heldTerms(now instant, body []byte) {
	l := k.loop
	if len(body) != trust.HeldSize || k.said != 0 && now.boot-k.said < termsEvery || l.superseded.Load() {
		return
	}
	if l.store.InForce(k.key, trust.Held(body)) {
		return
	}
	k.said = now.boot
	key, held := k.key, trust.Held(body)
	l.jobs.do(func(context.Context) {
		said, err := l.store.Remind(key, held)
		switch {
		case err != nil:
			l.log.Error("cannot say again what a peer may reach", "peer", key.Fingerprint(), "err", err)
		case said:
			l.log.Info("a peer holds other terms of ours than are in force; they are said again", "peer", key.Fingerprint())
			l.kickOutbox()
		}
	})
}
