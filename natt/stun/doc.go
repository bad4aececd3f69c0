// Package stun asks a server for the address that it sees us at, and answers that question (STUN Binding, RFC 8489,
// section 5 and 14.2), over the codec of github.com/pion/stun. Nothing is authenticated: whoever can read the request
// can forge the answer, so an answer is a hint that has to be proven by a path challenge, and callers match it by
// transaction ID and by the address that they asked.
//
// # Request
//
//	 0                   1                   2                   3
//	|0 0|   Binding request 0x001   |        length 24              |
//	|                   magic cookie 0x2112A442                     |
//	|                   transaction ID (96 bits)                    |
//	|   SOFTWARE 0x8022             |        length 20              |
//	|   "pilot" and spaces                                          |
//
// 44 bytes: the text makes the request as long as the longest answer, and SOFTWARE is an attribute that every server
// may ignore.
//
// # Answer
//
// A Binding success with XOR-MAPPED-ADDRESS and nothing else: 32 bytes for IPv4, 44 bytes for IPv6. A request of RFC
// 8489 may be as short as 20 bytes, so these answers can be longer than what they answer; no answer is ever longer than
// 44 bytes or the request, whichever is more, and the server limits their rate. A request with an attribute that must be
// understood and is not (CHANGE-REQUEST, above all: an answer from the same address would make the client believe
// that its NAT filters nothing) gets error 420 naming the attribute. Indications, answers and other methods get
// nothing.
//
// A Query of RFC 5780, 68 bytes, may ask for the answer to come from the server's other address (CHANGE-REQUEST), if it has
// two, or to go to another port of the sender's address (RESPONSE-PORT, from 1024 on). Neither makes the answer longer than
// the query, or sends it to another address than the sender's.
//
// STUN shares the agent's socket with other messages; Is tells it apart: its first byte is 0 or 1 and bytes 4 to 7 are
// the magic cookie.
package stun
