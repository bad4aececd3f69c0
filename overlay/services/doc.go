// Package services is the frame of what an agent offers on its own overlay
// address: the well-known services, one package each below this one, and what
// the owner publishes (publish). A service is a Run over listeners that the node
// makes; it opens no socket towards others itself.
//
//	port 7  echo        RFC 862, TCP and UDP
//	1001    exchange    files and messages over HTTP
//	1002    events      MQTT 5 and HTTP with Server-Sent Events
//	1003    tasks       A2A, with a handler of the owner's choice
//	any     publish     programs of this machine, by the owner's wish
//
// # Who may call
//
// Three gates stand before a service, and none of them is the service's own:
//
//	firewall   (package overlay) drops what lies outside the peer's grant, before
//	           the kernel sees it. A service never widens trust.
//	listener   is bound to the agent's own address and to the TUN device, so that
//	           a neighbour in the LAN who forges an overlay address as its source
//	           is not heard: the identity of a connection is its source address,
//	           and only the tunnel vouches for that.
//	Listener   asks who the source is and resets the connection of anybody who is
//	           no peer, who is not admitted, or who has too many open.
//
// So there is no token, no key and no login. Programs of this machine reach the
// same listeners under the agent's own address; they are the agent itself
// (Peer.Self).
//
// # Where listeners come from
//
// Network makes them. Kernel is the one for agents with a TUN. A user-space stack
// implements Network with listeners of its own, and no service sees a difference;
// services must therefore not expect *net.TCPConn, but look for CloseWrite.
//
// # Life
//
// A Group runs services until its context ends. A service that fails, for example
// because a program has its port, is started again after 1, 2, 4 ... 60 seconds
// and shows the reason meanwhile; the others do not notice. A panic in a
// connection's handler ends that connection, one in Run counts as a failure.
package services
