package overlay

// How the node works inside; the contract of each part is told where it is.
//
// # A packet's way
//
//	out: tun.Device.Read -> outbound: source, prefix, peer, firewall -> session?
//	     no:  stage (bounded), the loop opens a session
//	     yes: sender: cut or bundle, Session.Seal into the run -> natt.PacketConn.WriteBatch
//	in:  ReadBatch -> inbound: one table of first bytes
//	     data:    session by index -> Session.Open (authenticate, then replay window) -> items
//	              -> firewall: source, destination, scope, flows -> tun.Merger -> tun.Device.Write
//	     the rest: the cheapest check that tells strangers apart -> control loop
//
// Both directions run to completion in one goroutine each and neither allocate,
// lock nor log for a packet. What they refuse is counted by reason (drops.go).
//
// # The control loop
//
// One goroutine (loop.run) owns all slow state: links to peers with their
// handshakes and sessions, home servers, alarms. It reads events from the packet
// goroutines over a bounded channel and functions from everybody else (call,
// post), and publishes what the packet goroutines need: a snapshot of peers, a
// session table that changes in place, and one transmit and one policy a peer,
// each behind an atomic pointer. Work that waits for a disk or a network runs
// beside it and posts its result.
//
// # Frames
//
// items.go specifies the plaintext of a DATA frame. A frame is padded to a
// multiple of 16 bytes with zeros, except between the equal segments of one
// superpacket. A packet that does not fit the path's budget travels as two FRAG
// items. On a path whose budget is above 1500 bytes (jumbo.go) the segments of a
// superpacket share frames, as small packets do.
//
// # Handshakes
//
// An INIT leaves at once through the peer's home servers, over the path in use
// and to the last direct endpoint known; the first RESP wins. INITs repeat after
// 0.25, 0.5, 1, 2, 4, then every 5 s, each under a fresh ephemeral key, and end
// after 90 s. A receiver answers each INIT once, twice a second a peer, and
// changes nothing before data confirms the session. Of two sessions begun by
// both sides within 1 s both send on that of the lower key; a replaced session
// goes on decrypting for 10 s. Keys are renewed after 120 s of use or 2^26
// frames, by the initiator, or 20 s later by the other side.
//
// # Two instances
//
// A key runs once. Of two instances a home server has the one that started last, and
// tells the other: that one says goodbye to its peers, who turn to the new one at
// once, and is silent from then on, towards servers too, whatever happens to its
// network; it changes no trust but to revoke. A new start alone gives it the place back.
// A peer's goodbye ends the session that it came in and those before it, not a
// later one with the new instance.
//
// # Firewall
//
// Package firewall decides on every inner packet, in both directions. The loop
// gives it one policy a peer; what it refuses is counted by reason (drops.go).
//
// # Services
//
// What the agent offers on its own address (services, services/publish) runs
// beside the packet path as any program would: over sockets of the kernel, or of
// the node's own stack, behind the firewall. A service learns from caller whose a source address is.
//
// # Stopping
//
// cancel -> services end; the loop says goodbye to peers and servers -> socket and device are
// closed -> their readers return -> names are taken back -> the store is closed ->
// Run returns.
