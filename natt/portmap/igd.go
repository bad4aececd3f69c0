package portmap

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

const (
	maxBody     = 256 << 10 // of a description or an answer
	maxHeader   = 16 << 10
	httpTimeout = 3 * time.Second
	maxServices = 4 // of one device
)

// Errors of a device that callers branch on.
var (
	errNoEntry   = errors.New("portmap: no such mapping")
	errConflict  = errors.New("portmap: the port is taken")
	errPermanent = errors.New("portmap: only permanent mappings are possible")
	errUnknown   = errors.New("portmap: this cannot be looked up")
)

// box is a service of a gateway device that maps UDP ports to us, or makes pinholes for us.
type box interface {
	// host is the address of the device.
	host() netip.Addr
	// external returns the address that the Internet sees.
	external(ctx context.Context) (netip.Addr, error)
	// entry returns what an external port is mapped to; errNoEntry if to nothing.
	entry(ctx context.Context, external uint16) (entry, error)
	// add maps an external port to the port of ours, or prolongs that. It returns the port that was mapped. A lease of
	// 0 is for ever.
	add(ctx context.Context, external, internal uint16, lease time.Duration) (uint16, error)
	// remove withdraws a mapping.
	remove(ctx context.Context, external uint16) error
}

// entry is what an external port is mapped to.
type entry struct {
	client netip.Addr
	port   uint16
	left   time.Duration // 0: for ever
}

// device is a host that answered the search, with an HTTP client that reaches no other.
type device struct {
	addr   netip.Addr
	self   netip.Addr
	client http.Client
}

func (d *device) host() netip.Addr { return d.addr }

func newDevice(addr, self netip.Addr) *device {
	d := &device{addr: addr, self: self}
	dialer := net.Dialer{Timeout: httpTimeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(self, 0))}
	d.client = http.Client{
		Timeout:       httpTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("portmap: redirects are not followed") },
		Transport: &capped{device: addr, next: &http.Transport{
			Proxy: nil, // never: the gateway is our neighbour
			DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(to)
				if err != nil {
					return nil, err
				}
				return dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), port))
			},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		}},
	}
	return d
}

// capped refuses requests to any other host and cuts long answers off.
type capped struct {
	device netip.Addr
	next   http.RoundTripper
}

func (c *capped) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := ownURL(r.URL, c.device); err != nil {
		return nil, err
	}
	answer, err := c.next.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxBody), answer.Body}
	}
	return answer, err
}

// services reads the description of a device and returns what in it can map ports, the best first.
func (d *device) services(ctx context.Context, at *url.URL) ([]box, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("portmap: description: %w", err)
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("portmap: description: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("portmap: description: status %d", answer.StatusCode)
	}
	root, err := parseDescription(answer.Body, at, d.addr)
	if err != nil {
		return nil, err
	}
	boxes := d.boxes(root)
	if len(boxes) == 0 {
		return nil, fmt.Errorf("portmap: device %v maps no ports", d.addr)
	}
	return boxes, nil
}

// parseDescription reads a device description. The base URL in it counts only if it names the device itself.
func parseDescription(r io.Reader, at *url.URL, device netip.Addr) (*goupnp.RootDevice, error) {
	decoder := xml.NewDecoder(r)
	decoder.DefaultSpace = goupnp.DeviceXMLNamespace
	var root goupnp.RootDevice
	if err := decoder.Decode(&root); err != nil {
		return nil, fmt.Errorf("portmap: description: %w", err)
	}
	base := at
	if u, err := url.Parse(root.URLBaseStr); err == nil && root.URLBaseStr != "" && ownURL(u, device) == nil {
		base = u
	}
	root.SetURLBase(base)
	return &root, nil
}

// boxes picks the services of our address family whose control URL leads to the device.
func (d *device) boxes(root *goupnp.RootDevice) []box {
	kinds := []string{
		internetgateway2.URN_WANIPConnection_2, internetgateway2.URN_WANIPConnection_1, internetgateway2.URN_WANPPPConnection_1,
	}
	if d.self.Is6() {
		kinds = []string{internetgateway2.URN_WANIPv6FirewallControl_1}
	}
	var list []box
	for _, kind := range kinds {
		for _, s := range root.Device.FindService(kind) {
			if len(list) == maxServices || !s.ControlURL.Ok || ownURL(&s.ControlURL.URL, d.addr) != nil {
				continue
			}
			client := soap.NewSOAPClient(s.ControlURL.URL)
			client.HTTPClient = d.client
			list = append(list, d.box(kind, goupnp.ServiceClient{SOAPClient: client, RootDevice: root, Service: s}))
		}
	}
	return list
}

func (d *device) box(kind string, c goupnp.ServiceClient) box {
	switch kind {
	case internetgateway2.URN_WANIPConnection_2:
		two := &internetgateway2.WANIPConnection2{ServiceClient: c}
		return &translator{device: d, service: two, picky: two}
	case internetgateway2.URN_WANIPConnection_1:
		return &translator{device: d, service: &internetgateway2.WANIPConnection1{ServiceClient: c}}
	case internetgateway2.URN_WANPPPConnection_1:
		return &translator{device: d, service: &internetgateway2.WANPPPConnection1{ServiceClient: c}}
	}
	return &pinholer{device: d, service: &internetgateway2.WANIPv6FirewallControl1{ServiceClient: c}}
}

// description is the name under which users see our mappings in the pages of their router.
const description = "pilot"

// connection is what the three services that translate IPv4 have in common.
type connection interface {
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, external uint16, protocol string) (internal uint16, client string, enabled bool, description string, lease uint32, err error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
}

// translator is a box that translates addresses.
type translator struct {
	*device
	service connection
	picky   *internetgateway2.WANIPConnection2 // nil if the service cannot pick a free port itself
}

func (t *translator) external(ctx context.Context) (netip.Addr, error) {
	s, err := t.service.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, fault("external address", err)
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, nil // many say nothing while they are offline
	}
	return a, nil
}

func (t *translator) entry(ctx context.Context, external uint16) (entry, error) {
	internal, client, _, _, lease, err := t.service.GetSpecificPortMappingEntryCtx(ctx, "", external, "UDP")
	if err != nil {
		return entry{}, fault("look up", err)
	}
	a, err := netip.ParseAddr(client)
	if err != nil {
		return entry{}, fmt.Errorf("portmap: look up: mapping to %.40q", client)
	}
	return entry{a, internal, time.Duration(lease) * time.Second}, nil
}

func (t *translator) add(ctx context.Context, external, internal uint16, lease time.Duration) (uint16, error) {
	seconds := uint32(lease / time.Second)
	err := t.service.AddPortMappingCtx(ctx, "", external, "UDP", internal, t.self.String(), true, description, seconds)
	if err == nil {
		return external, nil
	}
	err = fault("map", err)
	if t.picky == nil || !errors.Is(err, errConflict) {
		return 0, err
	}
	external, err = t.picky.AddAnyPortMappingCtx(ctx, "", external, "UDP", internal, t.self.String(), true, description, seconds)
	if err != nil {
		return 0, fault("map", err)
	}
	return external, nil
}

func (t *translator) remove(ctx context.Context, external uint16) error {
	return fault("withdraw", t.service.DeletePortMappingCtx(ctx, "", external, "UDP"))
}

// fault turns the error of a call into one of ours.
func fault(what string, err error) error {
	if err == nil {
		return nil
	}
	var f *soap.SOAPFaultError
	if !errors.As(err, &f) {
		return fmt.Errorf("portmap: %s: %w", what, err)
	}
	code := f.Detail.UPnPError.Errorcode
	switch {
	case code == 714 || code == 704: // NoSuchEntryInArray; NoSuchEntry of the firewall
		return errNoEntry
	case slices.Contains([]int{718, 729, 727, 728}, code): // conflicts, and no free port
		return errConflict
	case code == 725:
		return errPermanent
	}
	return fmt.Errorf("portmap: %s: the gateway refuses: %d %.60q", what, code, f.Detail.UPnPError.ErrorDescription)
}

// pinholer is a box that lets packets through to an IPv6 address.
type pinholer struct {
	*device
	service *internetgateway2.WANIPv6FirewallControl1
	id      uint16
	made    bool
}

// leastPinhole is the shortest time that a pinhole is made for (WANIPv6FirewallControl section 2.4.3.1).
const leastPinhole = time.Hour

func (p *pinholer) external(ctx context.Context) (netip.Addr, error) {
	enabled, allowed, err := p.service.GetFirewallStatusCtx(ctx)
	switch {
	case err != nil:
		return netip.Addr{}, fault("firewall", err)
	case enabled && !allowed:
		return netip.Addr{}, errors.New("portmap: the firewall allows no pinholes")
	}
	return p.self, nil
}

// entry says nothing: there is no way to ask whose a pinhole is.
func (p *pinholer) entry(context.Context, uint16) (entry, error) { return entry{}, errUnknown }

func (p *pinholer) add(ctx context.Context, _, internal uint16, lease time.Duration) (uint16, error) {
	seconds := uint32(max(lease, leastPinhole) / time.Second)
	if p.made {
		err := p.service.UpdatePinholeCtx(ctx, p.id, seconds)
		if err == nil {
			return internal, nil
		}
		p.made = false
	}
	id, err := p.service.AddPinholeCtx(ctx, "", 0, p.self.String(), internal, protocolUDP, seconds)
	if err != nil {
		return 0, fault("pinhole", err)
	}
	p.id, p.made = id, true
	return internal, nil
}

func (p *pinholer) remove(ctx context.Context, _ uint16) error {
	if !p.made {
		return nil
	}
	p.made = false
	return fault("withdraw", p.service.DeletePinholeCtx(ctx, p.id))
}
