// Package relay is what agents and rendezvous servers say to each other: the
// codec of both channels, the two client machines for the UDP channel ([Home]
// and [Visitor]) and the client of the control channel ([Control]). The server
// itself is package rendezvous, which uses the same codec from the other side.
//
// # Roles
//
// An agent is at home on one or two servers. Only there it says who it is, by
// Noise IK with its registration key. Everybody else is a visitor and stays
// nameless, by Noise NK: a visitor reads a card, leaves sealed mail, or opens a
// relay channel to an agent at home. So a server is not told who writes to whom.
//
// # Channels
//
// The UDP channel carries what fits one datagram and may be lost. The control
// channel (Noise inside WebSocket inside TLS, opened when needed) is request and
// answer for claims, cards and mail. Both are Noise_*_25519_AESGCM_SHA256 with
// the server's X25519 key, which the agent knows from HOST[:PORT]#KEY. The TLS
// certificate authenticates nothing and may be self-signed.
//
// # Datagrams
//
// Integers are big-endian. A message has exactly the size given here or is
// dropped; "zero" bytes must be zero. An address is 16 bytes of IPv6 (IPv4 as
// ::ffff:a.b.c.d) and 2 bytes of port; 18 zero bytes are no address.
//
//	RELAY, type 7, both ways, 12+n bytes
//	 0  1  7        1  3  zero      4  8  channel     12  n  inner frame
//
// A RELAY frame is not sealed again: the inner frame is. The inner frame starts
// with its own type (4, 5 or 6 of package crypto). An inner frame that starts
// with a zero byte is the sender's keepalive: the server sends it back and does
// not pass it on. A frame may be 65,507 bytes long in theory; a sensible sender
// stays within the path budget.
//
//	HELLO, type 8, agent to server, 184 bytes     Noise IK message 1
//	 0  1  8        1  1  version 1     2  2  zero     4  4  attempt
//	 8 32  e       40 48  sealed registration key
//	88 64  sealed: fingerprint 16, instance 8, unix ms 8, started (unix ms) 8, flags 4, zero 4
//	152 16 mac1   168 16  mac2
//
//	WELCOME, type 9, server to agent, 96 bytes    Noise IK message 2
//	 0  1  9        1  1  version 1     2  2  zero     4  4  attempt of the HELLO
//	 8 32  e
//	40 56  sealed: status 1, zero 3, session 8, unix ms 8, observed address 18, zero 2
//
//	VISIT, type 10, visitor to server, 212 bytes  Noise NK message 1
//	 0  1  10       1  1  version 1     2  2  zero     4  4  attempt
//	 8 32  e
//	40 140 sealed: target fingerprint 16, inner length 2, zero 1, flags 1 (1 = ask), inner frame and zeros 104
//	180 16 mac1   196 16  mac2
//
//	OPENED, type 11, server to visitor, 96 bytes  Noise NK message 2
//	 as WELCOME; the session field is the channel number; if the VISIT asks, the address is the target's, or none
//
//	RECORD, type 12, both ways, 76 bytes
//	 0  1  12       1  3  zero      4  8  session
//	12 64  crypto.Transport message (counter 8, ciphertext 40, tag 16) of
//	       kind 1, flags 1, zero 2, echo 8, unix ms 8, observed address 18, zero 2
//	       (in a REVEAL and SEEN: channel in the place of echo, zero 2 and proof 6 in that of unix ms)
//
//	COOKIE, type 13, server to anyone, 40 bytes
//	 0  1  13       1  3  zero      4  4  attempt     8 16  cookie    24 16  mac
//
//	HINT, type 14, server to anyone, 16 bytes
//	 0  1  14       1  1  what (1 session, 2 channel)     2  2  zero     4  8  number   12  4  zero
//
// The prologue of both handshakes is "pilot relay v1" and the first 8 bytes of
// message 1. HELLO and VISIT are longer than every answer to them, so a forged
// source draws fewer bytes than were sent.
//
//	mac1 = HMAC-SHA256(SHA-256("pilot relay mac v1" || server key), all bytes before)[:16]
//	mac2 = HMAC-SHA256(cookie, all bytes before mac2)[:16], or zeros without a cookie
//
// mac1 keeps scanners from costing more than a hash. A server under load answers
// a good mac1 without a good mac2 with a COOKIE, before any Diffie-Hellman: the
// cookie is a MAC over the source address under a secret that the server changes
// every two minutes, the COOKIE's own mac is HMAC-SHA256(mac1 key, bytes 0..23 ||
// mac1 of the request)[:16]. Who did not see the request cannot forge the COOKIE.
// (WireGuard's construction, without its encryption of the cookie: who can read
// the COOKIE on the wire can also read the request.)
//
// # A home session
//
// The agent sends HELLO until WELCOME comes, then a PING record at once. Only
// this record, which needs the ephemeral key, moves the agent's binding to the
// new session: a replayed HELLO from another address changes nothing, whatever
// its time says. The PONG confirms it to the agent, which then reports
// [Registered]. WELCOME's status is 0 welcome, 1 unknown (claim first, then
// knock again: there is no session), 2 superseded (another instance of this key
// that started later is registered). Both refusals are sealed by the server's
// key: nobody else can tell an agent to be silent.
//
// Records: PING (kind 1, agent to server) and PONG (2, answer, same echo, flag 1
// = mail waits) keep the NAT mapping alive, measure the round trip and tell the
// observed address and the time. NOTICE (3, server to agent): echo 1 = mail
// waits, 2 = superseded, 3 = show that you live; an agent answers 1 and 3 with a
// PING; the server repeats 1 and 2 twice. BYE (4, agent to server) ends the session. A record with a counter above all
// before it, from a new source address, moves the session there: roaming and a
// rebinding NAT cost half a round trip.
//
// Of two instances of one key the one that started later (by its own clock) has
// the place. One that started earlier waits while the server asks the other for a
// sign of life, and is told superseded when that comes; after 3 s of silence it
// has the place. A takeover (flag 1) has it at once.
//
// Keepalive is one PING in 20 s at first: 3 packets a minute to each server. Once the
// agent has found out how long its NAT keeps a mapping (natt.Lifetime) it is 0.7 of
// that, 2 minutes at most. A server forgets who is silent for 5 minutes.
//
// # Restart of a server
//
// A restarted server has lost all sessions. Waiting for the next keepalive would
// take up to 20 s, and a keepalive every 4 s would cost 15 packets a minute to
// each server. Instead the server writes the bare bindings (session number and
// source address, nothing about who) to a file as they change, and after a
// restart sends every address in it a HINT with the session number, three times
// within 2.5 s, at most 2,000 a second. The NAT mapping is still open, so the
// agent hears it and sends HELLO within a random half second. A RECORD with an
// unknown session or a RELAY frame on an unknown channel is answered by a HINT
// as well (rate limited).
//
// A HINT is not authenticated, it only repeats a 64-bit number that the agent
// knows and an outsider does not. The agent keeps its session until a new one is
// confirmed and honours one HINT in 5 s, so a forged one costs one handshake.
//
// # A relay channel
//
// A channel has two numbers, random, one per direction: the visitor's, told in
// OPENED and bound to the visitor's source address, and the target's, which it
// sees in the RELAY frames that reach it on its home session's address. Each
// side sends with its own number. VISIT may carry the first inner frame (an
// INIT), so opening costs no round trip of its own. A VISIT from the same address
// to the same target gets the same channel. An unknown or absent target gets the
// same answer, and silence.
//
// Until the target has answered, 4 frames/s of at most 200 bytes pass from the
// visitor. Until the visitor has used its number, which proves that it reads at
// its address, the same holds towards the visitor: a forged VISIT cannot point a
// target's traffic at somebody else. Then the server's quota holds.
//
// When the visitor's address changes, frames get a HINT and it visits again. When
// the target's address changes, its home session moves and the channel follows.
//
// # Where the other end is
//
// An agent sends many packets to an address (to search for the ports of a hard NAT) only if a server
// says that the peer was seen there: the peer's own word could name anybody. The server says so to the two
// ends of a channel, and only if both ask. Asking is consent: whoever asks may be known to the other.
//
// The target sends REVEAL (kind 5) with its number of the channel. SEEN (6) repeats the number and tells the
// visitor's address, or none if the visitor has not asked or has not used its number yet. The first REVEAL from
// an address is answered by a SEEN with flag 1 and a proof, a MAC of session and address under a secret of the
// server; the REVEAL is sent again with it. So a target that forges its source address (which moves its session
// there) cannot have the server say that it is there. The visitor sends a VISIT with flag 1 and no inner frame; its
// OPENED, which must be of the same channel, tells the target's address or none. Addresses at the other end of TLS
// connections are not told. Both ask again until they know. A visitor that has no channel, a stranger that visits
// the same target and one that guesses numbers learn nothing, and the server keeps two bits a channel and one
// address a session. A server that does not know the question drops it: without an answer nobody searches.
//
// # Control channel
//
// GET https://HOST:PORT/card/FINGERPRINT returns the signed card of an agent: it
// is public and checks itself. GET /v1/control is a WebSocket of binary messages.
//
//	first message, client:  version 1, pattern 1 (1 IK, 2 NK), zero 2, Noise message 1, mac1 16
//	                        (IK payload: fingerprint 16; NK payload: 16 zero bytes; prologue
//	                        "pilot control v1" and the first 4 bytes)
//	first message, server:  Noise message 2 with payload: unix ms 8, stamp bits for claims 1, for mail 1, certificate mark 6
//	request:                op 1, zero 1, number 2, body          (as a crypto.Transport message)
//	answer:                 op 1, status 1, number 2, unix ms 8, body, or text if status is not 0
//
//	op 1 CLAIM (IK)  stamp 16 (or zeros), claim length 2, claim, card length 2, card
//	op 2 PUT   (NK)  target fingerprint 16, stamp 16, body length 2, body (sealed mail, <= 8 KiB)
//	op 3 LIST  (IK)  after ID 8                     -> more 1, count 1, (ID 8, length 2, body)...
//	op 4 ACK   (IK)  count 1, ID 8 ...
//	op 5 TIME        empty
//	op 6 WITHDRAW (IK)  length 2, withdrawal
//	op 7 HEAD (IK)   length 2, signed head or nothing -> length 2, signed head or nothing
//
// HEAD leaves the agent's signed head (package crypto) with its home server, which keeps
// the one with the highest count, and is answered with the one that is kept then. By it an
// agent finds out that it runs on a restored backup (package trust).
//
// A server that does not hold the key of mac1 closes with WebSocket status 4001;
// the client then says which key it expected.
//
// A withdrawal (package ipam) takes back every claim up to a serial. The server forgets
// claim, card, session and mail, and never again accepts a claim or card of the key up to that
// serial; the address stays reserved for the key, which can claim it anew with a higher
// one. The server's key is under the signature, so no server can show the withdrawal to another,
// and a later claim stands, however often it comes again. Whoever is not the agent gets
// one answer whether or not the agent exists. A server that does not know the operation
// closes the channel.
//
// A stamp is a proof of work: unix ms 8, nonce 8, such that SHA-256("pilot stamp v1" ||
// server key || op || subject 32 || stamp) starts with the asked number of zero bits.
// The subject is SHA-256 of the claim, or SHA-256(fingerprint || body) of a
// mail. The time must be within 10 minutes of the server's. A repeated mail is
// stored once, so a stamp is good for one item.
//
// The certificate mark is the first 6 bytes of SHA-256 of the TLS certificate that the
// server showed on this connection, or zeros. A client that was shown another one
// knows that TLS is inspected on the way, by whom, and goes on: what is inside is
// sealed for the server's key.
//
// # Carriers
//
// Where UDP does not get through, GET /v1/datagrams is a WebSocket whose binary
// messages carry the datagrams above, in both directions, unchanged:
//
//	message: (size 2, datagram size)...      at least one; a size is not 0
//
// To the server such a connection is one more socket, and the address at its other
// end the source of what comes from it. A message holds what waited, 16 KiB unless
// one datagram is larger. Who sends drops the oldest above 64 KiB that wait, and
// asks the kernel to hold no more than 16 KiB unsent (TCP_NOTSENT_LOWAT), so that a
// slow stream loses packets as a slow link would, instead of delaying them by
// seconds. A message that is not of this form ends the carrier. The server closes one
// that brings nothing for 5 minutes, or for 20 s at first. Nothing in a carrier is
// trusted because of it.
//
// # The ways to a server
//
// [Ladder] decides, from questions sent and answers heard, between UDP to the
// server's port, UDP to 443, a carrier to 443 or the server's port, and a carrier
// through an HTTP proxy (CONNECT, RFC 9110 9.3.6, with Basic authentication). The
// next one is tried 200 ms after the last, and all tried stay candidates. A VISIT to
// nobody is the question that finds out whether UDP works: its answer is
// authentic and moves nothing. When a session moves to another way the server takes
// what was sent by the old one for 10 s more, so that a change loses nothing. Control
// channels and cards race the same routes ([Routes]); the first that the server
// answers wins.
//
// Sources: Noise revision 34 (IK, NK); WireGuard's paper 5.3 and 5.4.7 (cookies);
// RFC 7983 and 9443 (first bytes 4-15 are free beside STUN); RFC 6455 (WebSocket).
package relay
