package overlay

import "time"

// The types in this file are the node's answers. They are encoded as JSON by
// overlay/api and printed by pilotctl; a field is never renamed or removed
// within one schema number.

// ID says who this agent is.
type ID struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	ULA         string `json:"ula"`
	Fingerprint string `json:"fingerprint"`
	Contact     string `json:"contact"` // empty without a home server
	Claimed     bool   `json:"claimed"` // every home server accepted the address
}

// Status is the whole state that a user may see.
type Status struct {
	ID
	Version  string            `json:"version"`
	Started  time.Time         `json:"started"`
	State    string            `json:"state"` // "ready", "starting", "no_server", "conflict", "suspended"
	Requests []Request         `json:"requests"`
	Servers  []ServerStatus    `json:"servers"`
	Device   DeviceStatus      `json:"device"`
	Socket   SocketStatus      `json:"socket"`
	Lifetime LifetimeStatus    `json:"mapping_lifetime"`
	Peers    []Peer            `json:"peers"`
	Services []ServiceStatus   `json:"services"`
	Drops    map[string]uint64 `json:"drops"`
	Warnings []string          `json:"warnings,omitempty"`
	// Suspended says why no trust is in force; nil: it is.
	Suspended *Suspension `json:"suspended,omitempty"`
}

// A Suspension says that this state is older than what this agent told others: it
// was restored from a backup, or another instance of the identity went on without
// it. Trust that was revoked since may be in it, so none is in force until Confirm.
type Suspension struct {
	By    string    `json:"by"`           // who showed it: a server or a peer
	Told  uint64    `json:"changes_told"` // changes of trust that others were told of
	Here  uint64    `json:"changes_here"` // changes that this state knows
	At    time.Time `json:"told_at"`      // when others were told, by this machine's clock of then
	Since time.Time `json:"since"`
	Peers int       `json:"peers"` // whose trust is suspended
}

// ServerStatus is what one home server knows of us.
type ServerStatus struct {
	Server     string  `json:"server"` // HOST[:PORT]#KEY
	State      string  `json:"state"`  // "registered", "connecting", "refused"
	Via        string  `json:"via"`    // "udp", "udp-443", "tls", "proxy"
	Observed   string  `json:"observed,omitempty"`
	RTTMillis  float64 `json:"rtt_ms,omitempty"`
	Claimed    bool    `json:"claimed"`
	Error      string  `json:"error,omitempty"`
	TLSWarning string  `json:"tls_warning,omitempty"`
}

// DeviceStatus describes the virtual NIC.
type DeviceStatus struct {
	Name    string `json:"name"`
	MTU     int    `json:"mtu"`
	Offload string `json:"offload"`
	// DNS is how names are known to the host: "resolved", "resolvconf", "files",
	// "hosts" or "off", and "starting" until it has been told. DNSNotes say why not in a better way, or what is wrong.
	DNS      string   `json:"dns"`
	DNSNotes []string `json:"dns_notes,omitempty"`
	// Userspace: the agent has a TCP/IP stack of its own; Why says what kept it from
	// having a device of the kernel, where it tried.
	Userspace bool   `json:"userspace,omitempty"`
	Why       string `json:"userspace_why,omitempty"`
	Proxy     string `json:"proxy,omitempty"` // where the proxy listens, ADDRESS:PORT
}

// SocketStatus describes the UDP socket.
type SocketStatus struct {
	Port    uint16 `json:"port"`
	Offload string `json:"offload"`
}

// Peer is one trusted agent.
type Peer struct {
	Name        string     `json:"name"`
	Address     string     `json:"address"`
	ULA         string     `json:"ula"`
	Fingerprint string     `json:"fingerprint"`
	Trust       string     `json:"trust"` // "active", "expired", "suspended"
	In          string     `json:"in"`    // ports the peer may reach here
	Out         string     `json:"out"`   // ports we may reach there
	Expires     *time.Time `json:"expires,omitempty"`
	Path        string     `json:"path"` // "direct", "relay", "none"
	Endpoint    string     `json:"endpoint,omitempty"`
	RTTMillis   float64    `json:"rtt_ms"`
	Loss        float64    `json:"loss"`             // share of challenges over the path without an answer, 0 to 1
	Budget      int        `json:"budget,omitempty"` // largest outer packet of the path, bytes
	RxBytes     uint64     `json:"rx_bytes"`
	TxBytes     uint64     `json:"tx_bytes"`
	LastSeen    *time.Time `json:"last_seen,omitempty"`
	WhyNot      string     `json:"why_not_direct,omitempty"`
	Reason      string     `json:"why_not_direct_reason,omitempty"` // natt.Reason: one word of a closed set
	Changed     *time.Time `json:"last_change,omitempty"`           // when data last moved to another path
	GapMillis   float64    `json:"last_gap_ms,omitempty"`           // longest silence around that, under traffic
	Note        string     `json:"note,omitempty"`                  // e.g. "no answer: offline, revoked us, or lost its state"
}

// Request is a trust request that waits, received or sent. Name and Reason are
// the other side's words: untrusted text, already stripped of control
// characters, never to be followed as an instruction.
type Request struct {
	Fingerprint string     `json:"fingerprint"`
	Address     string     `json:"address"`
	Name        string     `json:"name"`
	Ports       string     `json:"ports"` // asked of us (received), or asked by us (sent)
	Offer       string     `json:"offer"`
	Reason      string     `json:"reason"`
	Untrusted   []string   `json:"untrusted_text"` // names of the fields above that are the other side's words
	Direction   string     `json:"direction"`      // "in" or "out"
	Received    time.Time  `json:"received"`
	Expires     *time.Time `json:"expires,omitempty"`
	StateLost   bool       `json:"state_lost,omitempty"` // known key, state lost
}

// Netcheck says how this host is connected. Mapping and Filtering are
// behaviours in the terms of RFC 4787: "none" (no translation), "endpoint-independent",
// "address", "address-and-port", "no-udp", or "unknown" where no server with two
// addresses answered.
type Netcheck struct {
	Mapping    string         `json:"mapping"`
	Filtering  string         `json:"filtering"`
	PortStep   int            `json:"port_step,omitempty"` // distance of the ports of a NAT that counts
	Mapped     string         `json:"mapped,omitempty"`    // our address as the first server saw it
	UDP        []uint16       `json:"udp"`                 // server ports that answered
	UDPBlocked []uint16       `json:"udp_blocked"`         // server ports that were asked and did not
	IPv6       bool           `json:"ipv6"`                // a public IPv6 address is there
	Servers    []ServerStatus `json:"servers"`
	// PortMappings are the addresses that gateways say lead to us. Peers are offered them,
	// and send there only what proves them, until it is answered.
	PortMappings []string `json:"port_mappings"`
	STUN         []string `json:"stun"` // third-party servers that were asked too, HOST:PORT
	// Lifetime is measured in the background over minutes.
	Lifetime LifetimeStatus `json:"mapping_lifetime"`
}

// Pong is the answer of one tunnel ping.
type Pong struct {
	Seq       int     `json:"seq"`
	RTTMillis float64 `json:"rtt_ms"`
	Path      string  `json:"path"` // "direct" or "relay"
	Endpoint  string  `json:"endpoint"`
}

// Whois says which peer a source address belongs to.
type Whois struct {
	Name        string     `json:"name"`
	Address     string     `json:"address"`
	ULA         string     `json:"ula"`
	Fingerprint string     `json:"fingerprint"`
	In          string     `json:"in"`
	Out         string     `json:"out"`
	Expires     *time.Time `json:"expires,omitempty"`
	Self        bool       `json:"self,omitempty"`
}

// RequestOptions asks another agent for trust.
type RequestOptions struct {
	Contact string        `json:"contact"`
	Reason  string        `json:"reason"`
	As      string        `json:"as,omitempty"`    // petname for the peer; default its own suggestion
	Ports   string        `json:"ports,omitempty"` // default 7,80,443,1001-1003
	Offer   string        `json:"offer,omitempty"` // default 7
	TTL     time.Duration `json:"ttl,omitempty"`
}

// ApproveOptions narrows what a request asked. Nil fields keep what was asked.
type ApproveOptions struct {
	Peer  string         `json:"peer"` // name, address, ULA, fingerprint or contact
	As    string         `json:"as,omitempty"`
	Ports *string        `json:"ports,omitempty"`
	TTL   *time.Duration `json:"ttl,omitempty"`
}

// InviteOptions makes an invitation.
type InviteOptions struct {
	Ports string        `json:"ports"`
	TTL   time.Duration `json:"ttl"` // at most 24 h
	For   string        `json:"for,omitempty"`
	Name  string        `json:"name,omitempty"`
	Uses  int           `json:"uses,omitempty"`  // how many agents may use it, once each; 0: one
	Trust time.Duration `json:"trust,omitempty"` // how long the trust that it gives lasts; 0: as long as is asked
}

// TrustResult tells how far a request or an acceptance has come.
type TrustResult struct {
	State       string `json:"state"` // "pending", "granted"
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
	Address     string `json:"address"`
	ULA         string `json:"ula"`
	Ports       string `json:"ports"`
	// Listening names the sockets of this machine that the grant exposes;
	// only filled when all ports were granted or offered.
	Listening []string `json:"listening,omitempty"`
}
