// Package crypto holds the keys, the handshake and the sealed frames of Pilot:
// bytes and time in, bytes out. It opens no socket, reads no file and never
// asks for the time; randomness comes from crypto/rand. It imports no other
// package of Pilot.
//
// This comment is the specification of what it puts on the wire. Integers are
// big-endian. "||" joins byte strings; a length is exact or the message is
// dropped. Keys and fingerprints are written as lower-case RFC 4648 base32
// without padding; parsers take upper case too, and nothing else that is not
// the canonical text.
//
// # Identity
//
// The identity of an agent is its Ed25519 public key (RFC 8032), 32 bytes. A
// parser refuses encodings that are not canonical and the eight points of
// small order: the verifier of Go's standard library takes both, and under a
// key of small order one fixed signature verifies many messages.
//
//	fingerprint = SHA-256("pilot id v1" || key)[0:16]
//	signature   = Ed25519(context || 0x00 || body)
//
// Contexts are ASCII constants, one for each kind of signed object.
//
// Tunnel keys are X25519 keys of their own (RFC 7748), never converted from
// the Ed25519 key: that conversion maps a key and its negative to the same
// point, and a converted key could not be replaced without a new identity.
// Parsers refuse coordinates that are not reduced and points of low order.
//
// # Server
//
// HOST[:PORT]#KEY: a DNS name (letters, digits, hyphens) or an IP address, IPv6
// in brackets; the port, 3478 if absent; the server's X25519 key in 52
// characters. [Server].String is the canonical text.
//
// # Card
//
// What an agent publishes about itself, signed in the context "pilot card v1"
// by the key in it; at most 4096 bytes. Each card has exactly one encoding.
//
//	   0     1  version, 1
//	   1     1  n, number of home servers, 0-4
//	   2     2  zero
//	   4    32  Ed25519 key
//	  36     8  node ID counter (checked by package ipam)
//	  44     8  serial: a higher one supersedes
//	  52  1216  HPKE key: ML-KEM-768 1184 || X25519 32
//	1268    32  registration key, X25519
//	1300     -  n times: port 2 || length 1 || host || X25519 key 32
//	   -    64  signature of all bytes before it
//
// # Head
//
// How many changes an agent's trust has seen, signed in the context "pilot head v1"
// by the key in it; others show it back to it (package trust says why).
//
//	 0   1  version, 1            1   7  zero
//	 8   8  count                16   8  mark, random
//	24   8  unix ms              32  32  Ed25519 key
//	64  64  signature of all bytes before it
//
// # Sealing
//
// HPKE (RFC 9180), base mode, single shot: KEM MLKEM768-X25519 (0x647a, X-Wing),
// HKDF-SHA256, AES-256-GCM, no associated data. A sealed message is the
// encapsulated key 1120 || ciphertext || tag 16. The private key is the 32-byte
// seed of X-Wing. HPKE does not say who sealed: sign first, with the
// recipient's key inside the signature, then seal.
//
// # Noise
//
// [Handshake] is Noise (noiseprotocol.org, revision 34) with 25519, AESGCM and
// SHA256 in the patterns KK, KKpsk0, IK and NK, unmodified, on the standard
// library. A key that a pattern needs and that is missing is an error, the PSK
// above all; so is one that it does not use. Read and Write work on a copy of
// the state and commit it on success. Split gives three keys: the first two
// outputs of HKDF(ck, "") are those of the Noise specification, the third is
// an exporter, reserved for an ML-KEM exchange inside the tunnel.
//
// # Pair
//
// A request and its grant give two agents the [PairSecret]
//
//	R = HKDF-Extract(salt = SHA-256(SHA-256(request) || SHA-256(grant)),
//	                 ikm  = request random 32 || grant random 32)
//
// over the statements' bodies without signatures. For each direction, that of
// the handshake from initiator I to responder R,
//
//	K = HKDF-Expand(R, label || 0x00 || key_I || key_R, 32)
//
// with the Ed25519 keys and the labels "pilot psk v1", "pilot tag v1" and
// "pilot mac v1". R never changes by itself, so a crash or a restored backup
// cannot put the two sides out of step; a new request and grant replace it,
// together with both X25519 statics, which were made for this pair.
//
// # Tunnel handshake
//
// Noise_KKpsk0_25519_AESGCM_SHA256 with K_psk, between the pair's statics, with
//
//	prologue = "pilot tunnel v1" || 0x00 || key_I || key_R || addr_I || addr_R || INIT[0:16]
//
// (Ed25519 keys of 32, addresses of 6 bytes). There is no version to negotiate
// and no cipher to choose. The first bytes 4, 5 and 6 leave room for STUN on
// the same socket (RFC 7983, RFC 9443).
//
//	INIT, 104 bytes                RESP, 100 bytes                DATA, 32+n bytes
//	 0  1  4                        0  1  5                        0  1  6
//	 1  1  version, 1               1  1  version, 1               1  1  flags: bit 0 PARTIAL, rest zero
//	 2  2  zero                     2  2  zero                     2  2  zero
//	 4  4  sender index             4  4  sender index             4  4  receiver index
//	 8  8  knock tag                8  4  receiver index           8  8  counter
//	16 32  ephemeral key           12 32  ephemeral key           16  n  ciphertext
//	48 40  sealed payload          44 40  sealed payload         16+n 16  tag
//	88 16  mac1                    84 16  mac1
//
//	INIT payload, 24 bytes         RESP payload, 24 bytes
//	 0  6  unix time in ms          0  2  features
//	 6  2  features                 2  2  start: 1 + instance ID mod 65535
//	 8  8  instance ID              4 16  source of INIT, IPv6 or IPv4-mapped
//	16  8  trust head              20  2  its port
//	                               22  2  zero
//
// An index is random, chosen by the side that will receive frames under it.
// The instance ID tells two daemons with one key apart, and two starts of one; RESP
// has room for less of it, and 0 from daemons before that. The source in RESP is
// what a STUN server would have said, authenticated; address and port are zero
// when INIT came over a relay.
//
//	knock tag = HMAC-SHA256(K_tag, epoch 8)[0:8], epoch = unix seconds / 7200
//	mac1      = HMAC-SHA256(K_mac, all bytes of the message before it)[0:16]
//
// RESP uses the K_mac of the direction of its INIT. A responder accepts tags of
// its own epoch and [EpochWindow] epochs each way, from a table made beforehand,
// so that a stranger costs one failed look-up: no DH, no allocation, no answer.
// What passes the tag must pass mac1, then a budget that the caller keeps per
// peer, then the handshake. RESP is shorter than INIT: nothing to amplify.
//
// What each side must know about the guarantees:
//
//   - Every [Pair.Respond] draws a new ephemeral, so a replayed INIT never gives
//     old keys. The initiator may be an echo of the past until a DATA frame
//     under the new keys has been opened: until then the responder sends
//     nothing, moves no endpoint and retires no session.
//   - [Initiation.Complete] changes nothing on error and succeeds once.
//   - The ephemerals give forward secrecy. K_psk, which was carried under
//     ML-KEM, keeps recorded traffic closed even if X25519 falls; should R leak
//     too, that protection is gone for what was recorded.
//
// # Sessions
//
// The first two keys of Split are AES-256-GCM keys, one per direction. The
// nonce is four zero bytes || counter, the associated data is the header of 16
// bytes: a DATA frame is a Noise transport message with the header as ad. The
// counter starts at zero for each key. PARTIAL says that the transport
// checksums of the packets inside are left for the receiver to complete; to
// this package it is a bit like any other.
//
// Sending: one atomic addition gives each frame its counter; from 2^28 on all
// are refused and the counter stays pinned there. A frame is at most
// [MaxFrame] bytes. 2^26 messages or 120 s call for a new handshake, 2^28 or
// 180 s end a session; the times are for the caller to keep.
//
// Receiving: shape and index, then authentication, and only then the replay
// window (RFC 6479, 8128 counters). Whatever is refused has changed nothing.
//
// [Transport] is the same with less header, for agents and servers after IK or
// NK: counter 8 || ciphertext || tag 16, no associated data.
//
// # Keys in memory
//
// Go cannot reliably erase what its cipher objects hold. Split and Wipe clear
// what is ours and drop the rest; keep the process from dumping core. A
// virtual machine that is resumed twice from one snapshot would use nonces
// twice: the caller drops all sessions when the clock steps or the VM
// generation changes.
package crypto
