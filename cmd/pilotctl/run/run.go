package run

import (
	"errors"
	"net/netip"
)

// Command is the hidden command whose action is Inside.
const Command = "run-inside"

// ErrNotAllowed says that this user may not make namespaces here.
var ErrNotAllowed = errors.New("the kernel does not let this user make namespaces")

// The addresses of host0, and the name server on its other side.
var (
	linkAddress  = netip.MustParsePrefix("192.0.0.2/29")
	linkAddress6 = netip.MustParsePrefix("fd00:c0::2/126")
	NameServer   = netip.MustParseAddr("192.0.0.1")
)
