package portmap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
)

// maxAnswer bounds an answer to a search.
const maxAnswer = 2048

// searchFor are the device types that are searched for. Devices of version 2 answer for version 1 too, as the UPnP
// device architecture asks, but not all of them know.
var searchFor = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
}

// search is the question for devices of a type (UPnP device architecture 1.1, section 1.3.2).
func search(to netip.AddrPort, target string) []byte {
	to = netip.AddrPortFrom(to.Addr().WithZone(""), to.Port())
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: %s\r\n\r\n", to, target)
}

// location takes an answer to a search from an address and returns where the description of the device is. A device may
// only speak of itself: a URL on any other host than the one that the answer came from is refused, as is any name.
func location(b []byte, from netip.Addr) (*url.URL, error) {
	if len(b) > maxAnswer {
		return nil, errors.New("portmap: search: answer too long")
	}
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, fmt.Errorf("portmap: search: %w", err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("portmap: search: status %d", r.StatusCode)
	}
	u, err := url.Parse(r.Header.Get("Location"))
	if err != nil {
		return nil, fmt.Errorf("portmap: search: %w", err)
	}
	if err := ownURL(u, from); err != nil {
		return nil, err
	}
	return u, nil
}

// ownURL checks that a URL leads by HTTP to a device's own address.
func ownURL(u *url.URL, device netip.Addr) error {
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.Unmap().WithZone("") != device.WithZone("") {
		return fmt.Errorf("portmap: device %v: URL %.100q leads elsewhere", device, u.String())
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if u.Port() == "" {
		port, err = 80, nil
	}
	if u.Scheme != "http" || u.User != nil || u.Opaque != "" || err != nil || port == 0 {
		return fmt.Errorf("portmap: device %v: URL %.100q is not plain HTTP", device, u.String())
	}
	return nil
}
