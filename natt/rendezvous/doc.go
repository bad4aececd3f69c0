// Package rendezvous is the public server of Pilot: where agents are at home and
// visitors find them. It answers with observed addresses (also by STUN), relays
// sealed frames between agents that have no direct path, keeps claims, cards and
// sealed mail. Anybody can run one; servers know nothing of each other.
//
// Package relay specifies what is said on the wire. This page says what the
// server does with it.
//
// # What it knows
//
// Stored on disk: claims and cards (public, signed by the agents), of agents that took
// their claim back the fingerprint, address and a serial, of each agent the newest signed head (how often its
// trust has changed), sealed mail by recipient, and the bindings file of the restart mechanism (session numbers and
// addresses). A mail item carries 4 bytes that stand for the sender's network,
// blinded by a key that is drawn at every start and never stored. Nothing on disk
// or in the log says who wrote to whom, who relays to whom, or who trusts whom.
// While it runs, the server sees addresses and timing of what it relays, and holds
// in memory which address visits which agent. It tells the two ends of a channel where
// the other is only when both ask, and has proven each address.
//
// # What a stranger can cost it
//
// In the order in which a datagram meets them: the exact size and a keyed MAC
// under the server's public key; under load (more than half the handshake queue
// full) a cookie that proves the source; a token bucket for its /24 or /48; the
// bounded queue; then two Diffie-Hellman operations on one of GOMAXPROCS/2
// workers. Answers are never longer than the request until the source is proven.
// A first claim: a stamp (proof of work), two signatures, then Argon2id in one
// worker behind a queue of 64, of which one network may fill 8. Mail: a stamp, one
// lookup, one synced write; 32 items a box, of which the network with most items
// loses its oldest; 7 days.
// Connections are limited in all and per network, and every wait has an end.
//
// A session or channel binds to a source address only when a message that needs
// what was sent there has come back: a record under the session's keys, or a
// frame with the channel's number.
//
// # Relay
//
// One goroutine reads each socket. A run of frames on one channel (UDP_GRO) is
// looked up once, its channel numbers are rewritten in the receive buffer, and it
// leaves as a run (UDP_SEGMENT) in the same batch: no copy, no allocation, no log
// line. Each direction of a channel has a quota in bytes.
//
// A TLS connection on /v1/datagrams is one more socket, with a reader of its own and
// a short queue that drops its oldest. It is found by the session or channel that
// is bound to it, so relaying between UDP and TLS needs no further rule. Such
// carriers are counted against a limit below that of all connections, so that cards
// and control channels find room, and are closed when they bring nothing.
//
// # TLS
//
// Three certificates are possible: a self-signed one, the operator's files (read
// again within a minute when they change), or one by ACME (RFC 8555, TLS-ALPN-01, so
// the authority must reach port 443), with the self-signed one until it is there and
// for other names. Agents accept any; strict firewalls on their side may not.
//
// # Durability
//
// A Store method returns when the change is on disk (bbolt, fsync per write), and
// only then is the agent answered. Package storetest is the conformance suite.
// Sessions and channels live in memory: after a restart, agents are told by a HINT
// to register again (package relay, "Restart of a server").
//
// # Files in the state directory
//
//	server.key       X25519 key in base32, mode 0600; its public half is in every agent's configuration
//	tls.crt tls.key  TLS certificate, self-signed at the first start; replace them by your own if you like
//	server.db        claims, cards, heads, mail
//	acme/            account and certificates of the ACME authority, if one is used
//	bindings         sessions of the current run, for the next
package rendezvous
