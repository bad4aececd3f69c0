package natt

import "net/netip"

// A Path is one way to a peer: straight to an address, or through a channel of a relay at that address. Paths are comparable.
type Path struct {
	// Remote is the peer's address, or the relay's.
	Remote netip.AddrPort
	// Channel is the relay channel that leads to the peer; 0 means that Remote is the peer itself.
	Channel uint64
	// Socket is the number of the local socket that the path starts at, as its owner counts them; 0 is the agent's main one.
	Socket uint16
}

// Relayed reports whether a relay stands between us and the peer.
func (p Path) Relayed() bool { return p.Channel != 0 }

// A Token is what a path challenge asks to be echoed.
type Token [8]byte
