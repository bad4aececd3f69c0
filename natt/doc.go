// Package natt reaches a peer on the underlay: the UDP socket, the addresses at which an agent may be reached, and per
// peer the choice of a path. It knows neither keys nor packets of the tunnel.
//
// # The socket
//
// PacketConn carries runs: equal-sized datagrams laid end to end, the last of which may be shorter. On Linux a run leaves
// by one sendmmsg(2) entry with UDP_SEGMENT and arrives by one recvmmsg(2) entry with UDP_GRO (udp(7)); elsewhere, and
// where the kernel or an option says no, the same calls move single datagrams. Package nattest holds the rules
// that all implementations obey, and package natlab has one in memory.
//
// One socket serves IPv6 and IPv4. IPv4 addresses are always in their 4-byte form, link-local IPv6 addresses are not
// supported. A failure of one destination (unreachable, refused, too large) never affects the others of a batch and
// is reported for it alone by WriteError. Two failures have a meaning beyond:
//
//   - EMSGSIZE: the datagram, or each datagram of the run, is larger than the link. With DontFragment this follows from
//     the interface's MTU only, never from an ICMP message, which anybody could forge. The caller cuts smaller.
//   - EIO on a run: the link cannot cut runs. The socket sends single datagrams to this address from then on.
//
// Sockets answer from the address that was asked: with PacketInfo, Message.Local of what was read goes into what is written.
//
// # Candidates
//
// A candidate is an address with the way we came to know it. A list of candidates travels inside the session only:
//
//	count       1 byte, at most 16
//	count times
//	  kind      1 byte: 1 host, 2 observed, 3 mapped; 0 is refused, others are kept and not used
//	  family    1 byte: 4 or 6
//	  address   4 or 16 bytes; an IPv4 address in IPv6 form is refused
//	  port      2 bytes, big-endian, not 0
//
// There is nothing behind the last entry, and no address occurs twice, so that a list has one encoding. ParseCandidates
// judges the form. UsableCandidates judges the content, since the peer may be hostile: an agent never sends to
// loopback, link-local, multicast, broadcast or unspecified addresses, to its own, into the overlay's own prefix, or
// to private addresses of networks it is not on. HostCandidates applies the same rules to what we offer.
//
// # Offers
//
// Behind the list may come parts, each of kind 1, length 1 and body, in rising order of kind and once each; parts of kinds
// that are not known are skipped. A part that says nothing is left out, so that what is known has one encoding.
//
//	1 traits  mapping 1, filtering 1 (Behavior), step of the ports 1 (signed)
//	2 pool    sockets opened for the peer 2 (not 0), port that the NAT gave out before them 2 (0: not known). With one socket and a
//	          NAT that is not hard it is the port of this socket (fresh.go); with both NATs hard see run.go
//	3 flags   1: UDP is blocked here
//
// # Limits of trust
//
// The peer may be hostile, and what it lists may be somebody else's. An address that has not answered gets at most 20 packets
// (challenges and openers, each below 150 bytes) and then none for a minute; later attempts have 10 packets and are a minute,
// two, four and then five minutes apart. At most 16 addresses in ten minutes get any. Naming them again, or others, changes
// nothing; only a change of our own network does. Answers to challenges go where those came from, one to one and no larger.
// Everything beyond (searches for the ports of hard NATs, pools of sockets) goes only to the address at which a server says that
// it sees the peer, and a server says so only to a peer that asks for it (package relay, "Where the other end is").
//
// # Paths
//
// A Path is an address, or a channel of a relay. Which one a peer's packets take is decided by an Agent, a pure machine:
// see there, and the comment that opens agent.go. How large packets may be is found out for each path, by padded
// challenges of up to MaxBudget bytes: up to 1500 on every path, and beyond on direct ones where a link of this host takes
// more (LinkMTU).
package natt
