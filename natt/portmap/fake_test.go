package portmap

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/huin/goupnp/dcps/internetgateway2"
)

const igdDescription = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:2</deviceType><friendlyName>router</friendlyName>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:2</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:2</deviceType>
<serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/s.xml</SCPDURL><controlURL>/ctl</controlURL><eventSubURL>/evt</eventSubURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>`

func endpoint(b box) url.URL {
	switch s := b.(*translator).service.(type) {
	case *internetgateway2.WANIPConnection2:
		return s.SOAPClient.EndpointURL
	case *internetgateway2.WANIPConnection1:
		return s.SOAPClient.EndpointURL
	case *internetgateway2.WANPPPConnection1:
		return s.SOAPClient.EndpointURL
	}
	return url.URL{}
}

// gateway is a gateway on an address of the loopback network: PCP and NAT-PMP, SSDP, and an IGD.
type gateway struct {
	addr    netip.Addr
	control *net.UDPConn
	ssdp    *net.UDPConn
	http    *http.Server
	port    uint16 // of HTTP

	mu       sync.Mutex
	external netip.AddrPort
	born     time.Time
	mapped   map[uint16]uint32 // internal port to lifetime
	igd      map[string]string // external port to internal port
	garbage  bool              // answers noise
	location string            // what SSDP says; empty for the truth
	handler  http.HandlerFunc  // replaces the description and the control point
	searched int
	gone     int
}

// newGateway starts a gateway, after it was told by configure how to behave.
func newGateway(t *testing.T, addr string, external string, configure ...func(*gateway)) *gateway {
	t.Helper()
	a := netip.MustParseAddr(addr)
	g := &gateway{addr: a, external: netip.MustParseAddrPort(external), born: time.Now(), mapped: map[uint16]uint32{}, igd: map[string]string{}}
	for _, f := range configure {
		f(g)
	}
	listen := func() *net.UDPConn {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			t.Skipf("needs loopback address %s: %v", addr, err)
		}
		return c
	}
	g.control, g.ssdp = listen(), listen()
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	g.port = portOf(l.Addr())
	g.http = &http.Server{Handler: http.HandlerFunc(g.serve), ReadHeaderTimeout: time.Second}
	var all sync.WaitGroup
	all.Go(func() { _ = g.http.Serve(l) })
	all.Go(func() { reply(g.control, g.answerControl) })
	all.Go(func() { reply(g.ssdp, g.answerSearch) })
	t.Cleanup(func() {
		g.control.Close()
		g.ssdp.Close()
		g.http.Close()
		all.Wait()
	})
	return g
}

func portOf(a net.Addr) uint16 {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		panic(err)
	}
	return p.Port()
}

func reply(c *net.UDPConn, f func([]byte) []byte) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if a := f(b[:n]); a != nil {
			_, _ = c.WriteToUDPAddrPort(a, from)
		}
	}
}

func (g *gateway) answerControl(b []byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	epoch := uint32(time.Since(g.born) / time.Second)
	note := func(internal uint16, life uint32) {
		if g.mapped[internal] = life; life == 0 {
			delete(g.mapped, internal)
			g.gone++
		}
	}
	if g.garbage {
		return []byte(strings.Repeat("\x02\x81", 40))
	}
	if r, ok := parsePCPRequest(b); ok {
		note(r.Internal, r.Lifetime)
		return pcpReply{Opcode: pcpMap, Lifetime: r.Lifetime, Epoch: epoch, Nonce: r.Nonce, Protocol: protocolUDP, Internal: r.Internal, External: g.external}.append(nil)
	}
	if r, ok := parseNATPMPRequest(b); ok {
		if r.Op == natpmpMapUDP {
			note(r.Internal, r.Lifetime)
		}
		return natpmpReply{Op: r.Op, Epoch: epoch, Addr: g.external.Addr(), Internal: r.Internal, External: g.external.Port(), Lifetime: r.Lifetime}.append(nil)
	}
	return nil
}

func (g *gateway) answerSearch(b []byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.searched++
	at := g.location
	if at == "" {
		at = fmt.Sprintf("http://%v/rootDesc.xml", netip.AddrPortFrom(g.addr, g.port))
	}
	if g.garbage {
		return []byte("HTTP/1.1 200")
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nST: %s\r\nLOCATION: %s\r\n\r\n", searchFor[0], at)
}

var argument = regexp.MustCompile(`<(New\w+)>([^<]*)</New`)

// serve is the IGD.
func (g *gateway) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.handler != nil {
		g.mu.Unlock()
		g.handler(w, r)
		g.mu.Lock()
		return
	}
	if r.URL.Path != "/ctl" {
		_, _ = io.WriteString(w, igdDescription)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	arg := map[string]string{}
	for _, m := range argument.FindAllStringSubmatch(string(body), -1) {
		arg[m[1]] = m[2]
	}
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("Soapaction"), `"`), "#")
	say := ""
	switch port := arg["NewExternalPort"]; action {
	case "GetExternalIPAddress":
		say = "<NewExternalIPAddress>" + g.external.Addr().String() + "</NewExternalIPAddress>"
	case "GetSpecificPortMappingEntry":
		inner, ok := g.igd[port]
		if !ok {
			soapFault(w, 714, "NoSuchEntryInArray")
			return
		}
		say = "<NewInternalPort>" + inner + "</NewInternalPort><NewInternalClient>127.0.0.1</NewInternalClient><NewEnabled>1</NewEnabled>" +
			"<NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>3000</NewLeaseDuration>"
	case "AddPortMapping":
		if arg["NewProtocol"] != "UDP" || arg["NewInternalClient"] != "127.0.0.1" {
			soapFault(w, 402, "Invalid Args")
			return
		}
		g.igd[port] = arg["NewInternalPort"]
	case "DeletePortMapping":
		delete(g.igd, port)
	default:
		soapFault(w, 401, "Invalid Action")
		return
	}
	_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%[1]sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:2">%[2]s</u:%[1]sResponse></s:Body></s:Envelope>`, action, say)
}

func soapFault(w http.ResponseWriter, code int, text string) {
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>%s</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code, text)
}
