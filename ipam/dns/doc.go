// Package dns answers DNS questions about the agents that this one trusts:
// NAME.pilot.internal, and the reverse zone of the overlay's addresses. It is a
// small authoritative server (RFC 1034, RFC 1035) whose data somebody else
// keeps: Zone.Set replaces all of it at once, Zone.Answer turns one query into
// one reply and does nothing else.
//
// # Names
//
//	NAME.pilot.internal                 AAAA  the agent's address
//	                                    TXT   "address=0:0000.a91c.33f0"
//	                                          "fingerprint=..."
//	_a2a._tcp.NAME.pilot.internal       SRV   0 0 PORT NAME.pilot.internal
//	_a2a._tcp.pilot.internal            PTR   every NAME that has the service (RFC 6763 4.1)
//	0.f.3.3. ... .d.f.ip6.arpa          PTR   NAME.pilot.internal
//	dns.pilot.internal                  AAAA  Address, where these questions are answered
//	pilot.internal, the reverse zone    SOA, NS
//
// SRV records stand for the services that an Entry lists: what this agent
// publishes, and what peers let it reach at well-known ports. There is no A record
// for anything: the overlay has IPv6 only, and a program that got both would
// give the one that works too little time.
//
// # Answers
//
//   - A known name without the type asked for (A above all): NOERROR without an
//     answer, at once. Programs wait for both answers before they connect.
//   - Any other name of the two zones: NXDOMAIN. An agent that exists but is not
//     trusted is not in the data, so it takes the same code path to the same
//     bytes as one that does not exist.
//   - Names elsewhere: REFUSED. No question is ever passed on: a system that cannot
//     ask us about our zones alone takes REFUSED as a reason to ask the next server.
//   - ANY: one set of records of the name (RFC 8482). AXFR and IXFR: REFUSED.
//     An operation other than QUERY: NOTIMP. Not exactly one question
//     (RFC 9619), or not a DNS message: FORMERR. EDNS of a version above 0:
//     BADVERS. A reply, or less than a header: no answer.
//
// Negative answers carry the zone's SOA (RFC 2308). Records live 30 s, negative
// answers 5 s, so that a name works soon after its agent was trusted. Comparison
// ignores case, and the question comes back as it was written, since resolvers
// that mix the case at random check it (the 0x20 encoding).
//
// # Sizes
//
// A UDP reply has at most 512 octets, or what EDNS (RFC 6891) allows up to
// 1,232, which fits a packet of 1,280. What is longer is cut to the question
// with TC set. Data that Set took fits 512 octets but for the PTR list of a
// service that many agents have.
//
// # The packet side
//
// Nothing binds port 53 of the host. Programs ask Address, fd50:494c:4f54::35,
// node 53 of network 0, which no agent can have; the packet goes out through the
// TUN like any other, and Responder turns it into the reply that goes back in.
// It answers UDP to port 53 alone. What else goes to Address, DNS over TCP
// included, is refused by the packet path like a packet to an unknown peer: a
// program that falls back to TCP fails at once instead of waiting.
package dns
