package resolv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName  = "org.freedesktop.resolve1"
	resolvedPath  = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedCalls = "org.freedesktop.resolve1.Manager."
	busCalls      = "org.freedesktop.DBus."

	busTime   = time.Second // for one call
	probes    = 3
	probeTime = time.Second // for one of them
)

// resolved has systemd-resolved send the questions for two zones to Server, as
// settings of the link, which go away with it.
type resolved struct {
	Config
	bus   string // address
	paths paths
	stub  netip.AddrPort // where it answers programs

	conn    *dbus.Conn
	cancel  context.CancelFunc // ends conn
	signals chan struct{}
	link    int    // index of the interface that was set, 0: none
	owner   string // unique bus name of whom it was set at
	sound   bool   // what was set has been seen to work
}

func newResolved(c Config) *resolved {
	return &resolved{
		Config: c, bus: systemBus(), paths: systemPaths(), signals: make(chan struct{}, 1),
		stub: netip.AddrPortFrom(stubAddress, 53),
	}
}

// systemBus is where the D-Bus specification says that it is.
func systemBus() string {
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

func (r *resolved) mode() Mode               { return Resolved }
func (r *resolved) changed() <-chan struct{} { return r.signals }
func (r *resolved) check()                   { r.sound = false }

// set does nothing if all stands as it did: the names are asked for one by one.
func (r *resolved) set(ctx context.Context, _ []Entry) error {
	err := r.apply(ctx)
	if err != nil && r.link != 0 && ctx.Err() == nil { // at the end undo has its turn
		err = errors.Join(err, r.undo(ctx))
	}
	if err != nil {
		return fmt.Errorf("systemd-resolved: %w", err)
	}
	return nil
}

func (r *resolved) apply(ctx context.Context) error {
	link, err := net.InterfaceByName(r.Device)
	if err != nil {
		return err
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	owner, err := r.fits(ctx)
	if err != nil {
		return err
	}
	if r.sound && r.owner == owner && r.link == link.Index {
		return nil
	}
	if r.owner == owner && r.link == link.Index && r.probe(ctx) == nil {
		r.sound = true
		return nil
	}
	r.link, r.owner = link.Index, owner
	if err := r.configure(ctx); err != nil {
		return err
	}
	if err := r.probe(ctx); err != nil {
		return err
	}
	r.sound = true
	return nil
}

// fits checks that systemd-resolved runs and that programs ask it, and returns
// who it is on the bus.
func (r *resolved) fits(ctx context.Context) (owner string, err error) {
	if err := r.busCall(ctx, "GetNameOwner", resolvedName).Store(&owner); err != nil {
		return "", fmt.Errorf("does not run: %w", err)
	}
	var uid uint32
	if err := r.busCall(ctx, "GetConnectionUnixUser", owner).Store(&uid); err != nil {
		return "", err
	}
	return owner, r.paths.askResolved(uid)
}

// A server, and a domain, as the calls have them.
type (
	resolvedServer struct {
		Family  int32
		Address []byte
	}
	resolvedDomain struct {
		Domain  string
		Routing bool // only: no search domain
	}
)

// configure makes the settings. All but the first three came to be over the
// years; what an old version does not know it does not do either.
func (r *resolved) configure(ctx context.Context) error {
	address := r.Server.As16()
	for _, c := range []struct {
		name     string
		value    any
		optional bool
	}{
		{"SetLinkDNS", []resolvedServer{{unix.AF_INET6, address[:]}}, false},
		{"SetLinkDomains", []resolvedDomain{{r.Domain, !r.Search}, {r.Reverse, true}}, false},
		{"SetLinkDNSSEC", "no", false},
		{"SetLinkDefaultRoute", false, true},
		{"SetLinkLLMNR", "no", true},
		{"SetLinkMulticastDNS", "no", true},
		{"SetLinkDNSOverTLS", "no", true},
	} {
		err := r.call(ctx, c.name, int32(r.link), c.value).Err
		var e dbus.Error
		if c.optional && errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.UnknownMethod" {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return r.call(ctx, "FlushCaches").Err
}

// probe asks the way that programs ask. The packet side of the agent may start
// a moment later than we do.
func (r *resolved) probe(ctx context.Context) (err error) {
	for range probes {
		if err = probe(ctx, r.stub, r.Probe, r.Server, probeTime); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("names do not come through: %w", err)
}

// undo gives the link its state back, if it is still there. When it fails it can
// be called again.
func (r *resolved) undo(ctx context.Context) error {
	if r.link == 0 {
		return nil
	}
	r.owner, r.sound = "", false
	if err := r.connect(ctx); err != nil {
		return err
	}
	err := r.call(ctx, "RevertLink", int32(r.link)).Err
	var e dbus.Error
	if errors.As(err, &e) && (e.Name == resolvedName+".NoSuchLink" || e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" ||
		e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
		r.link = 0 // they went with the link, or with the service
		return nil
	}
	if err != nil {
		return err
	}
	r.link = 0
	return r.call(ctx, "FlushCaches").Err
}

// call does not start the service where it is not running: whoever stopped it
// meant it.
func (r *resolved) call(ctx context.Context, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	return r.conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedCalls+method, dbus.FlagNoAutoStart, args...)
}

func (r *resolved) busCall(ctx context.Context, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	return r.conn.BusObject().CallWithContext(ctx, busCalls+method, 0, args...)
}

// connect opens the bus, if it is not open, and listens for the service's coming
// and going.
func (r *resolved) connect(ctx context.Context) error {
	if r.conn != nil && r.conn.Connected() {
		return nil
	}
	r.close()
	life, cancel := context.WithCancel(context.Background())
	late := time.AfterFunc(busTime, cancel)
	conn, err := dbus.Connect(r.bus, dbus.WithContext(life),
		dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Geteuid()))))
	if err == nil && !late.Stop() {
		conn.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return fmt.Errorf("D-Bus: %w", err)
	}
	r.conn, r.cancel = conn, cancel
	events := make(chan *dbus.Signal, 16)
	conn.Signal(events)
	go func() {
		for range events { // until the connection is closed
			r.signal()
		}
		if life.Err() == nil {
			r.signal()
		}
	}()
	ctx, stop := context.WithTimeout(ctx, busTime)
	defer stop()
	err = conn.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, resolvedName))
	if err != nil {
		r.close()
		return fmt.Errorf("D-Bus: %w", err)
	}
	return nil
}

func (r *resolved) signal() {
	select {
	case r.signals <- struct{}{}:
	default:
	}
}

func (r *resolved) close() {
	if r.conn == nil {
		return
	}
	r.cancel()
	r.conn.Close()
	r.conn = nil
}
