// Package forward gives a network without a way out the host's: what a network
// namespace sends out through a TUN device ends here, in a TCP/IP stack of the
// process (gVisor's netstack), and goes on from sockets of the host.
//
//	program -> kernel of the namespace -> TUN -> Forwarder: netstack -> Dial -> the Internet
//
// A TCP connection is first opened on the host and only then answered, so that a
// program hears of a port that refuses it as a reset, and of a host that is silent
// as silence. Data goes both ways with half-closes and resets as they come. A UDP
// flow, two addresses with their ports, has a socket of the host of its own until it
// was quiet for a minute. One address is that of a name server: what is sent to its
// port 53 goes to Config.Names as DNS messages.
//
// Nothing else crosses: no ICMP, so that ping and traceroute hear nothing, no
// multicast and no broadcast. A host that answers must be the host's to reach: the
// Forwarder itself refuses no destination, loopback addresses aside, which no route
// of a namespace brings here.
//
// The number of connections that are being opened and of UDP flows is limited; what
// is above is dropped as a busy network would.
package forward
