package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
)

// The room that every packet returned by Device.Read has around it, so that a
// header and an authentication tag can be put there without moving the packet.
const (
	Headroom = 64
	Tailroom = 64
)

// The range of MTUs a device may have. Below 1280 octets Linux removes IPv6
// from an interface, addresses included.
const (
	MinMTU = 1280
	MaxMTU = 65535 - 40
)

// maxPacket is the largest packet or superpacket that crosses a device.
const maxPacket = 65535

var (
	// ErrPermission means that the process may not make network devices.
	ErrPermission = errors.New("not permitted")
	// ErrNoDevice means that the kernel or container offers no TUN driver.
	ErrNoDevice = errors.New("no TUN driver")
	// ErrIPv6Disabled means that IPv6 is off, for the machine or the interface.
	ErrIPv6Disabled = errors.New("IPv6 is disabled")
	// ErrNameTaken means that a network interface of that name exists.
	ErrNameTaken = errors.New("interface name is taken")
	// ErrRouteTaken means that the prefix is routed through another interface.
	ErrRouteTaken = errors.New("prefix is routed elsewhere")
)

// A Packet is one IPv6 packet, or a superpacket: one TCP or UDP header with the
// payload of many segments, each SegmentSize long but the last, which may be
// shorter.
//
// The bytes are borrowed in both directions: a packet from Device.Read until
// the next Read, a packet given to Device.Write until Write returns. Whoever
// borrows a packet may change its bytes, the room around it included.
type Packet struct {
	// Data is the packet. From Read, Headroom octets before it and Tailroom
	// octets after it belong to it as well; Buf reaches both.
	Data []byte
	// Tail is further payload, laid end to end after Data. Only Merger makes it
	// and only Write takes it: it lets the segments of a superpacket go to the
	// kernel from where they were decrypted, without a copy to join them.
	Tail [][]byte
	// Buf is the memory around Data, with Data at Buf[Headroom:]. Read sets it.
	Buf []byte
	// SegmentSize, if positive, marks a superpacket of TCP or UDP segments with
	// this much payload each.
	SegmentSize int
	// Partial says that the transport checksum field holds the sum of the
	// pseudo-header only, and whoever needs the full checksum must complete it.
	Partial bool
}

// Len is the length of the packet with its Tail.
func (p *Packet) Len() int {
	n := len(p.Data)
	for _, t := range p.Tail {
		n += len(t)
	}
	return n
}

// Offload says which work the kernel behind a device takes over.
type Offload struct {
	// VNetHdr: every packet travels with a virtio-net header, so that Partial
	// packets need no checksum from us.
	VNetHdr bool
	// TSO: TCP superpackets travel whole.
	TSO bool
	// USO: UDP superpackets travel whole.
	USO bool
}

// A Device is a virtual network interface: what the host routes into it comes
// out of Read, and what is given to Write reaches the host as if received.
//
// One goroutine at a time may call Read. Write may be called concurrently with
// Read and with other Writes. Close may be called at any time, and more than
// once: afterwards Read and Write, also those under way, return os.ErrClosed.
type Device interface {
	// Name is the interface's name as the host knows it.
	Name() string
	// MTU is the largest packet that Read returns, superpackets aside.
	MTU() int
	// BatchSize is the number of packets that one Read can return.
	BatchSize() int
	// Read waits for one packet, adds what already waits behind it up to
	// len(p) or BatchSize packets, and returns how many it stored in p. It does
	// not allocate.
	Read(p []Packet) (n int, err error)
	// Write hands all packets to the host, in order. Superpackets and Partial
	// packets are always allowed: where Offload says that the kernel does not
	// take them the device cuts and completes them itself. A packet that the
	// host refuses does not stop the others; the first such error is returned.
	Write(p []Packet) error
	// Offload says what the kernel does for this device.
	Offload() Offload
	// Close removes the interface with its addresses and routes.
	Close() error
}

// A Rerouter is a device that follows the host's other routes, for
// Config.IPv6Probe. Reroute is to be called when they have changed.
type Rerouter interface {
	Reroute() error
}

// WellKnownProbe is the address that Chromium, and what is built on it, connects
// a UDP socket to before it asks for IPv6 addresses of any name. On a host
// without a route to it browsers find no peer by name.
func WellKnownProbe() netip.Addr { return netip.MustParseAddr("2001:4860:4860::8888") }

// A Config says what device Open makes.
type Config struct {
	// Name of the interface; empty lets the system choose.
	Name string
	// Address is the host's own address, as a /128.
	Address netip.Prefix
	// Route is the prefix that the host reaches through the device.
	Route netip.Prefix
	// IPv6Probe, if valid, is an address outside Route by which programs judge
	// whether this host has IPv6 at all (see WellKnownProbe). On Linux a route to
	// it leads into the device as long as the host has none of its own; what
	// comes to it is for the owner of the device to refuse.
	IPv6Probe netip.Addr
	// MTU of the interface.
	MTU int
	// Without names offloads to leave unused even where the kernel has them.
	Without Offload
	// Logger receives what is worth telling about the device; nil for nobody.
	Logger *slog.Logger
}

func (c *Config) check() error {
	switch {
	case !c.Address.IsValid() || !c.Address.Addr().Is6() || c.Address.Addr().Is4In6() || !c.Address.IsSingleIP():
		return fmt.Errorf("tun: address %v: want one IPv6 address with prefix length 128", c.Address)
	case !c.Route.IsValid() || !c.Route.Addr().Is6() || c.Route != c.Route.Masked():
		return fmt.Errorf("tun: route %v: want an IPv6 prefix", c.Route)
	case c.MTU < MinMTU || c.MTU > MaxMTU:
		return fmt.Errorf("tun: MTU %d: want %d to %d, IPv6 does not work below", c.MTU, MinMTU, MaxMTU)
	}
	if p := c.IPv6Probe; p.IsValid() && (!p.Is6() || p.Is4In6() || p.Zone() != "" || c.Route.Contains(p)) {
		return fmt.Errorf("tun: IPv6 probe %v: want an IPv6 address outside %v", p, c.Route)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// A HelpError is an error that whoever runs the program can do something about.
type HelpError struct {
	Err  error
	Help string // what to do, in a sentence
}

func (e *HelpError) Error() string { return e.Err.Error() + ": " + e.Help }
func (e *HelpError) Unwrap() error { return e.Err }

// Open makes a TUN device, gives it the address and the route and brings it up.
// It runs no external command. The device lives as long as it is open: when the
// process ends, however it ends, interface, address and route are gone.
//
// Errors wrap ErrPermission, ErrNoDevice, ErrIPv6Disabled, ErrNameTaken or
// ErrRouteTaken where one of them is the cause; a HelpError says what to do about
// it.
func Open(c Config) (Device, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return open(c)
}
