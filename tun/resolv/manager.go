package resolv

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// A Mode says by what means names are made known.
type Mode string

const (
	Auto       Mode = "auto"       // the first means that fits
	Resolvconf Mode = "resolvconf" // resolvconf or openresolv, and the hosts file where that does not fit
	HostFile   Mode = "hosts"      // the hosts file, whatever else there is
	Off        Mode = "off"        // by none
	Resolved   Mode = "resolved"   // systemd-resolved; a Status only
	Files      Mode = "files"      // /etc/resolver of macOS; a Status only
	Starting   Mode = "starting"   // the system has not been told yet; a Status only
)

const (
	checkEvery  = time.Minute            // that the means still works
	settleTime  = 200 * time.Millisecond // for what has just come or gone
	restoreTime = 5 * time.Second
)

// A Config says what a Manager is to do, and for which names.
type Config struct {
	// Mode is Auto, Resolvconf or HostFile.
	Mode Mode
	// Device is the interface through which Server is reached.
	Device string
	// Server is the resolver that knows the names, on port 53.
	Server netip.Addr
	// Route, if valid, is the prefix of Server that Device has a route to. While
	// resolvconf names Server, what has no route there is unreachable.
	Route netip.Prefix
	// Domain is the zone of the names, Reverse that of their addresses.
	Domain, Reverse string
	// Search makes bare names be looked up in Domain as well. For the hosts file
	// they have to be among the names of the entries.
	Search bool
	// Probe is a name that Server always answers with its own address.
	Probe string
	// HostsFile is the hosts file, Tag the mark of this agent's block in it.
	HostsFile, Tag string
	// Logger receives which means is used, and why not another; nil for nobody.
	Logger *slog.Logger
}

// A Status is how names are made known at present.
type Status struct {
	// Mode is the means in use; Starting before the first one, Off after the end.
	Mode Mode
	// Notes say why a better means is not used, or what is wrong with this one.
	Notes []string
}

// A Manager makes the names of peers known to the resolver of the operating
// system, by the first means that fits, and takes everything back at the end.
type Manager struct {
	log     *slog.Logger
	means   []means
	left    []means // not to be used, but an earlier start may have
	current means
	status  atomic.Pointer[Status]
}

// means is one way to make names known.
type means interface {
	mode() Mode
	// set makes entries known. If they cannot be, it says why and leaves nothing.
	set(ctx context.Context, entries []Entry) error
	// check makes the next set look whether what was done before still works.
	check()
	// undo takes back what set did, at this or an earlier start.
	undo(ctx context.Context) error
	// changed is ready when set should be called again; nil if it never is.
	changed() <-chan struct{}
	// close ends what changed needs.
	close()
}

// NewManager returns a manager of the means that this operating system has. It
// changes nothing before Run.
func NewManager(c Config) *Manager {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	m := newManager(c.Logger, &hostsMeans{NewHosts(c.HostsFile, c.Tag)})
	m.means = slices.Concat(systemMeans(c), m.means)
	if c.Mode == HostFile {
		m.left = systemLeft(c)
	}
	return m
}

// newManager returns a manager of these means, the best first.
func newManager(log *slog.Logger, all ...means) *Manager {
	m := &Manager{log: log, means: all}
	m.status.Store(&Status{Mode: Starting})
	return m
}

// Status may be called from any goroutine.
func (m *Manager) Status() Status { return *m.status.Load() }

// Run keeps the entries known until ctx ends, and then takes back what it did.
// It reads entries at the start and whenever changed is ready.
func (m *Manager) Run(ctx context.Context, changed <-chan struct{}, entries func() []Entry) {
	defer m.restore()
	for _, s := range m.left {
		m.undo(ctx, s)
	}
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		m.apply(ctx, entries())
		waits := m.waits()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-waits:
			m.settle(ctx)
			m.checkAll()
		case <-tick.C:
			m.checkAll()
		}
	}
}

// settle waits until a service that came is ready, and bounds how often one that
// comes and goes is looked at.
func (m *Manager) settle(ctx context.Context) {
	wait := time.NewTimer(settleTime)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

func (m *Manager) checkAll() {
	for _, s := range m.means {
		s.check()
	}
}

// waits joins the signals of all means, of which there is one that has any.
func (m *Manager) waits() <-chan struct{} {
	for _, s := range m.means {
		if c := s.changed(); c != nil {
			return c
		}
	}
	return nil
}

// apply uses the first means that fits, and undoes the others when it is not the
// one used before.
func (m *Manager) apply(ctx context.Context, entries []Entry) {
	var notes []string
	for i, s := range m.means {
		err := s.set(ctx, entries)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			notes = append(notes, err.Error())
			if i < len(m.means)-1 {
				continue
			}
		}
		m.use(ctx, s, notes)
		return
	}
}

func (m *Manager) use(ctx context.Context, s means, notes []string) {
	if m.current != s {
		for _, other := range m.means {
			if other != s {
				m.undo(ctx, other)
			}
		}
		m.current = s
	}
	old, now := m.Status(), Status{Mode: s.mode(), Notes: notes}
	if old.Mode != now.Mode || !slices.Equal(old.Notes, now.Notes) {
		m.log.Info("names of peers", "dns", now.Mode, "notes", now.Notes)
		m.status.Store(&now)
	}
}

func (m *Manager) undo(ctx context.Context, s means) {
	if err := s.undo(ctx); err != nil {
		m.log.Warn("cannot take back the names of peers", "dns", s.mode(), "err", err)
	}
}

// restore ends whatever is in use.
func (m *Manager) restore() {
	ctx, cancel := context.WithTimeout(context.Background(), restoreTime)
	defer cancel()
	for _, s := range m.means {
		m.undo(ctx, s)
		s.close()
	}
	m.status.Store(&Status{Mode: Off})
}

// hostsMeans is the hosts file.
type hostsMeans struct{ *Hosts }

func (h *hostsMeans) mode() Mode                                   { return HostFile }
func (h *hostsMeans) set(_ context.Context, entries []Entry) error { return h.Set(entries) }
func (h *hostsMeans) check()                                       {}
func (h *hostsMeans) changed() <-chan struct{}                     { return nil }
func (h *hostsMeans) close()                                       {}

// undo reads first: a file without our block need not be one that we may write.
func (h *hostsMeans) undo(context.Context) error {
	text, err := os.ReadFile(h.path)
	if err != nil || !bytes.Contains(text, []byte(newBlock(h.tag).mark)) {
		return nil
	}
	return h.Remove()
}
