// Package run starts a program in a network of its own that has the overlay, without
// root and without a change to the program.
//
// # Processes
//
//	pilotctl run -- CMD     the node, its UDP socket, and the forwarder; stays where it was started
//	  pilotctl run-inside   keeper of the namespaces: makes devices and sockets there on demand
//	    CMD                 the program
//
// The node stays outside, since all that it does besides the device belongs to the
// host's network: its UDP socket, streams to servers, link changes, the connections
// of the forwarder. Opening those first and moving over then would not do: a node
// opens more later, and a process of many threads cannot enter a user namespace. So
// the keeper is born into the new namespaces, opens the devices there, and passes
// their descriptors out over a socket pair. A descriptor keeps its namespace,
// whoever reads from it.
//
// # Inside
//
//	pilot0   the agent's address and the route to all agents: the node
//	host0    192.0.0.2, default routes: tun/userspace/forward, to sockets of the host
//	lo       the program's own; 127.0.0.1 of the host is not reachable
//
// The addresses of host0 are from the block of RFC 7335, which is for links within
// one host. IPv6 has a default route only where the host has one. /etc/hosts is a
// copy of the host's to which the node adds the names of peers; /etc/resolv.conf
// names 192.0.0.1, which asks the node for names of the overlay, and the resolvers of
// the host for the others (Names).
//
// The user and group of the program are those of the caller, all others of the host
// appear as nobody; it has no capabilities. Root keeps its own user namespace and is
// root, where it may make a network namespace.
//
// # Ends
//
// The socket pair is the lifeline. When the program ends the keeper says how, and
// ends when the pair is closed. When the first process dies, the keeper ends the
// program with SIGTERM and, two seconds later, with SIGKILL. What the program leaves
// behind becomes the keeper's child and is ended by it in the same way, half a second
// later, since its network ends too. When the keeper dies, the kernel kills the
// program, and what that has started is on its own. Devices and routes end with the
// namespaces.
//
// # Messages
//
// The pair is of type SOCK_SEQPACKET: each message is one JSON object, a request or
// a response, with at most one descriptor. Requests are answered in any order.
package run
