// Package ipam is the address plan of Pilot: which address a key has, how
// addresses are written and mapped onto IPv6, and the signed claim with which
// an agent takes its address at a home server.
//
// The package holds no state, opens nothing and reads no clock. It imports
// crypto for keys and golang.org/x/crypto/argon2 for the derivation.
//
// # Addresses
//
// An address has 48 bits: a network of 16 and a node of 32. Only network 0
// exists; the bits are kept for later and other values are refused by every
// parser. Text is N:NNNN.HHHH.LLLL, the network in decimal and again in
// hexadecimal (a mismatch is refused), then the node. Hexadecimal digits are
// written in lower case and read in either. With a port it is
// N:NNNN.HHHH.LLLL:PORT. In binary an address is six bytes, big-endian.
//
// The address maps one to one onto an IPv6 unique local address (RFC 4193):
//
//	fd50:494c:4f54:NNNN::HHHH:LLLL
//
// whose 40-bit global ID and first byte spell 0xfd "PILOT", and whose subnet
// ID is the network. The global ID is not random as RFC 4193, 3.2 asks: every
// agent must compute the same prefix without being told.
//
// # Node IDs
//
// A node ID follows from the public key and an 8-byte counter:
//
//	h    = Argon2id(password = SHA-256(key || counter), salt = "pilot node v1",
//	       t = 1, m = 8 MiB, p = 1, tag length = 32)          RFC 9106, version 0x13
//	node = h[0:4], provided that h[4] = 0
//
// Counters that miss the condition are not valid, so that making an identity
// takes 256 attempts on average while checking one takes a single attempt (the
// hash extension of RFC 3972, section 3). The derivation takes the smallest counter that fits.
// Nodes 0 to 255 and 0xffffffff are reserved and count as a miss. The golden
// identity in the tests fixes all of this.
//
// The work makes it costly to find a second key for a chosen address; it does
// not make it impossible. A node ID authenticates nobody: peers are known by
// their whole key. Because one check takes about 10 ms and 8 MiB, parsers in this package
// never do it. Identity.Verify, Claim.Verify and NodeID do, and belong off the
// packet path, behind every cheaper check.
//
// # Identity file
//
// Four lines, each ended by a line feed, in exactly this form:
//
//	pilot-identity-v1
//	seed BASE32      52 characters, the RFC 8032 seed
//	counter N        decimal
//	address N:NNNN.HHHH.LLLL
//
// It is the whole identity: who copies it becomes the agent.
//
// # Claim
//
// A claim says "this key has this address here, and registers with this X25519
// key". A home server keeps the claim with the highest serial of each address.
// It is signed by the identity in the context "pilot claim v1" and has 156 bytes:
//
//	 0  "PCL1"
//	 4  address            6
//	10  zero               2
//	12  counter            8
//	20  serial             8
//	28  identity key      32   Ed25519
//	60  registration key  32   X25519
//	92  signature         64   over bytes 0 to 91
//
// A Withdrawal takes claims back at one server; its layout is described there.
//
// # Contacts, names and references
//
// A contact is what one agent gives another: ADDRESS#FINGERPRINT@HOST[:PORT].
// The fingerprint authenticates; the host is a home server where the card of
// the agent can be fetched (port 3478 if none is written).
//
// A petname is one DNS label that the holder of a trust book chose for a peer.
// ParseRef reads every way in which a person may name a peer. The forms cannot
// be confused, because ValidName refuses every name that could be one of the others.
package ipam
