// Package natlab is an Internet with NATs in memory, for tests only.
//
// A Net is a core to which hosts and routers are attached; behind each router is a LAN with hosts, and further routers.
// A datagram leaves its host, climbs from LAN to LAN until the destination is known, and descends; each router on the way
// translates and filters by its Kind. Every node has one uplink with a delay, a loss rate and an MTU. Uplinks to the
// core have the delay of Config, those to a LAN have none; so two agents behind routers are two uplinks apart.
//
// All waiting is done by timers and condition variables, so a Net made inside a testing/synctest bubble runs in virtual
// time, and outside it in real time. Net.Close ends every goroutine and closes every socket. Random choices (ports,
// losses) come from the seed in Config.
//
// # Datagrams
//
// Host.Listen gives a natt.PacketConn that behaves like the kernel's with DF on: wildcard address, packet info, runs in
// and out, EMSGSIZE for what the host's own uplink does not take. A datagram too large for a later uplink disappears, as
// it does where ICMP is filtered. Queues are bounded and drop. A router takes one off the time to live of a datagram; the
// core is 8 hops wide, so that what enters it with less dies there, having opened the sender's own NATs.
//
// # Streams
//
// Host.DialContext and Host.ListenTCP give byte streams with the same delays, through routers from the inside out. They
// know no congestion control; loss and cuts hold data back until a repetition gets through, and break the stream
// after a minute. A router that is flushed keeps its streams, one whose address changes loses them. Names of
// hosts resolve to their addresses.
//
// # Kinds
//
// What a router does to UDP, in the terms of RFC 4787. Mappings live 2 minutes after the last packet in either direction
// (with Linux 30 seconds until the first answer); TCP is translated as by Linux behind all of them.
//
//	kind      mapping                filtering              ports
//	None      no translation         none
//	Firewall  no translation         address and port
//	Full      endpoint-independent   endpoint-independent   random
//	Addr      endpoint-independent   address                random
//	Port      endpoint-independent   address and port       random
//	Linux     address and port       address and port       kept unless taken
//	Sym       address and port       address and port       random
//	Docker    as Linux, but what is not let in is taken by the router itself, and then the flow that it belongs to is
//	          taken: a packet to this remote endpoint gets another port
//	SymAddr   address                address and port       random
//	SymSeq    address and port       address and port       counted up from flow to flow
//
// Hosts behind None and Firewall have public addresses, the first of them the router's own. IPv6 addresses are never
// translated; routers other than None filter them by address and port.
package natlab
