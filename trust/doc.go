// Package trust is the book of who may reach whom. Two agents trust each other
// when one asked and the other granted; either ends it at any time, alone. The
// package holds the statements that they exchange, the state of each pair, and
// the store that keeps it. It does no network I/O: statements leave by the
// outbox and come back through Receive, in any order, any number of times.
//
// This comment is the specification. Integers are big-endian. Keys, cards,
// signatures, sealing and the pair secret are defined in package crypto.
//
// # Statements
//
// A statement is signed by its issuer with Ed25519 in the context "pilot trust
// v1", then sealed to the subject's HPKE key with the info "pilot mail v1". The
// subject's key is under the signature, so that a recipient cannot pass a
// statement on as if it were meant for a third. Fields that follow from keys (the
// addresses) are not repeated. The body has exactly one encoding:
//
//	  0   4  "PTS1"
//	  4   1  kind: 1 request, 2 grant, 3 revoke
//	  5   3  zero
//	  8   8  serial, 1 to 2^62-1
//	 16   8  expires, Unix seconds; 0 is never
//	 24   8  head: the issuer's count of changes with this one (see Restored backups)
//	 32  32  issuer: Ed25519 public key
//	 64  32  subject
//	 96  32  parent: ID of another statement
//	128  32  random: one half of the pair secret
//	160  32  tunnel: X25519 public key, made for this pair only
//	192   1  number of entries of ask
//	193   1  number of entries of offer
//	194   1  length of invite: 0 or 16
//	195   1  length of name, at most 64
//	196   1  zero
//	197   2  length of reason, at most 512
//	199   2  length of card
//	201      ask | offer | invite | name | reason | card
//
// followed by 64 bytes of signature. A body has at most 4096 bytes. The ID of a
// statement is the SHA-256 of its body, never of the signature. Offer is always
// what the subject may reach at the issuer; ask is what the issuer wants to reach
// at the subject. An entry of a scope is protocol (0 both, 6 TCP, 17 UDP), first
// port, last port: 1 + 2 + 2 bytes; entries ascend, do not overlap, and
// neighbours of one protocol are merged; at most 64.
//
// A request carries random, tunnel and card, and may carry invite, name and
// reason. Its parent is the newest pair that the issuer holds with the subject
// (the ID of its grant), or zero. A grant carries random and tunnel; its parent
// is the request that it answers; ask repeats what the request offered. A grant
// without random, tunnel and parent brings new terms only: the scope and the
// expiry of what the issuer lets the subject reach from now on. A revoke carries
// nothing but its serial. Fields that a kind does not use are zero or empty.
//
// # Serials
//
// A serial is above every serial between the two keys so far, in either
// direction, and at least the time in Unix milliseconds. So of two statements
// of a pair the later has the higher serial even if the clocks are years apart,
// a grant is always above the request it answers, and a key that spends its
// serials harms only its own pairs.
//
// # Pairs and slots
//
// A request and its grant make a slot: the pair secret
// (crypto.NewPairSecret of both IDs and both randoms) and the two tunnel keys.
// They are made, stored and deleted together and are never used in another slot.
// A pair has two slots, current and next; handshakes under both are answered.
//
//   - The granter stores the new slot as next before the grant is mailed, the
//     requester when it opens the grant.
//   - The first confirmed DATA frame under next deletes current (Confirmed).
//   - When a slot arrives while next is not confirmed, the order of the grants'
//     serials decides: the newest is next on both sides, whatever order they
//     arrived in. Of the others the newest stays that the peer is known to hold:
//     the request named it as its parent, the peer granted it, or data came under
//     it. A grant of ours shows nothing: it may answer a request that the peer
//     took back, while the word of that is lost. Sessions that are up go on.
//
// What each side lets the other reach, and until when, are its terms. The
// requester's are in its request (offer), the granter's in its grant; a grant of
// terms replaces either. The terms with the highest serial of a side count,
// whatever order they arrived in; those of a request or grant fall when that
// request is voided.
//
// A server that loses its mailboxes loses what their senders take for delivered, and a key
// that lost its state, or runs on an old copy of it, may give serials below those
// that its peer knows. So in each session a side tells which terms of the other it
// holds (Holds: their serial and 8 bytes of their SHA-256), and one that has others in
// force says them again (Remind): the same statement if the peer has not come to
// it, otherwise new ones above what the peer holds. With them goes the grant of a
// slot that no data has come under. If the peer holds what an open request of ours
// offers, it has granted it, and the request goes again, for the stored answer. A
// first request, or the grant that answers it, has no session to be missed in:
// whoever asked asks again.
//
// # Rules
//
//   - Once. A request is processed once. One with a serial above the highest seen
//     from its issuer may be granted by rule; any other that is not void can
//     only be granted by Approve (Pending.Stale: a reinstalled key, a clock that
//     is behind, or a replay). The highest serial is kept after revocation.
//   - Again. A statement that comes again gets the stored answer again: the
//     same grant, never new secrets. Request with unchanged options, while
//     unanswered, sends the stored request again.
//   - Waiting. A request waits for Approve, unless one of these rules grants it:
//     it brings an invite that holds; it crosses a request of ours, ours is the
//     higher key, and it asks for no more than ours offers; or it comes from a
//     peer, names a pair that we hold, and asks for no port more and no day
//     longer than the peer has: that only renews the secrets.
//   - Crossing. When both ask at once, the request of the lower key stands: only
//     the other side grants by rule. If people on both sides approve anyway, both
//     grants are taken, and both sides end with the same slots in the same order.
//   - All. Every port at once is granted only if the request says all and the
//     answer says all. No rule and no invite does that.
//   - State lost. A request of a peer that names no pair, though it should know
//     one, comes from a key without its store. The key restores the address, not
//     the trust: it waits, marked StateLost, until a person approves.
//   - Narrowing. Approve on a peer changes our terms: here at once, there by a
//     grant of terms. It makes no new secrets.
//   - Revocation. A revoke with serial N voids every statement up to N between the
//     two keys, in both directions: slots whose request is not above N, requests
//     that wait on either side, answers that would be given again, mail in the
//     outbox. N is kept for ever; nothing up to it is accepted again. A request
//     above N is a new one and waits. A revocation that arrives late does not
//     touch what was agreed after it; one that arrives before what it voids is
//     remembered, of strangers a bounded number.
//   - Block. All statements of the key are dropped unseen, with no change of state
//     and no answer, until Unblock.
//   - Invite. An invite names ports and lives for at most 24 hours. Its 128-bit
//     secret travels only inside a sealed request. It is consumed in the same
//     transaction as the grant that it causes. A second use by whomever is an
//     InviteReused event that names both keys. An invite that does not hold leaves
//     an ordinary request waiting, and the event says why. An invite for a fleet can
//     be used by several keys, once by each, and each gets a grant of its own, with a
//     petname that is numbered where it would clash. Whom it granted is kept, so that
//     they can be listed and revoked together until somebody approves them by hand.
//   - Petnames. A peer has a name that is unique among the peers and among those
//     asked for trust. Whoever approves may set it; otherwise the name that the
//     peer suggests is used, if it is valid and nobody else claims it, in a
//     waiting request or as a peer. A clash is ErrNameTaken.
//   - Address. A card must pass CheckCard, and a key whose address belongs to
//     another peer is refused.
//
// Name and reason are text of a stranger that ends on a terminal or in a model's
// context: they pass CleanText and stay untrusted.
//
// # Time
//
// The issuer's own firewall ends trust exactly at the expiry of its own terms.
// The receiver of a new statement accepts it until 25 hours after it expired,
// and honours the peer's terms as long, for its clock may be wrong. Time is the
// wall clock, but never before a floor, so that setting the clock back revives
// nothing. The floor is the last moment on which two clocks agreed that it has
// passed: ours, when a pair was made, and the peer's, by the serial of its
// statement, where that is not our own serial handed back. It advances with the
// time since boot. So neither a jump of our clock to 2046 nor a lying peer alone
// can expire what is valid.
//
// # Restored backups
//
// Whoever puts back an old copy of the state brings back what was revoked since. The
// store counts every change of a relation or an invite: its head. An agent signs
// the head (crypto.Head), with a random mark that was drawn with the change, and leaves
// it with its home servers and its peers (ShowHead), who keep the one with the highest
// count and show it back. What an agent sees of itself (SeenHead) must be part of its
// state's past: its count not above the state's own, and its mark one that the state
// remembers. The last 64 that were shown are remembered, and as many that were not; those
// before the shown ones are not judged. The mark finds the copy that has gone on and
// counts as high as the state that was lost. A copy that is as new as the state, on the
// machine that the key moves to, knows the mark and is not caught.
//
// What is not part of the past suspends all trust, durably: peers are Suspended, nothing
// is asked, granted by rule, used as an invite or sent again; requests wait;
// revocations, blocks and rejections work. Resume (`pilotctl trust confirm`) takes the state as it is
// and counts on above what was seen. A store that holds no trust, no request of ours
// and no open invite has nothing to bring back: it goes on above what was seen, without
// a word (a key whose store was lost).
//
// It is not caught as long as nobody who was told is heard. Two instances of one
// key that both go on are caught too. Nobody can forge a head, so a server or peer can
// only keep silent or show an old one.
//
// # Store
//
// The state directory holds three files, all of mode 0600:
//
//   - store.lock is locked by the process that uses the state.
//   - store.db is a bbolt database. The record of a key holds all about it, so a
//     pair can never be half changed. Records are JSON (a field can be added
//     without a new schema, and in an emergency a person can read them; nothing
//     reads them per packet), followed by a CRC-32C over bucket, key and content,
//     because bbolt's pages have no checksum. The state record holds the schema
//     number, and the number and sum of all other records. Open reads the whole
//     file and checks its structure, order and sums before bbolt maps it: a file
//     cut in half or with a damaged page is ErrDamaged, not a fault.
//   - revocations has one record of 64 bytes for each key that was revoked or
//     blocked here. All bytes are written when the file is made, room for 4096
//     records at first. A revocation overwrites one record in place and syncs it;
//     this works on a full disk, when bbolt cannot write. (File systems that
//     copy on write, such as btrfs, may still want space.) The file is read
//     before the database and wins over it. It grows by 4096 when less than a
//     quarter is free; if it cannot and is full, the oldest record that the
//     database holds too gives way.
//
// A change that cannot be written is an error, and the memory stays as it was. There is
// one failure after which the file may hold the change all the same: that of the last
// sync of a transaction. Whoever reads the file sees the change then, and whether it is
// durable nobody knows. The store tells it by its state record and writes the database
// no more; revocations go on in their file. After the next start the change is either
// there or not, and the store is whole.
//
// A record of the revocation file:
//
//	 0  32  key
//	32   8  serial: everything up to it is void
//	40   8  order of writing
//	48   1  1 if the key is blocked, else 0
//	49  11  zero
//	60   4  CRC-32C of bytes 0 to 59
//
// Unused records are 0xff throughout. The first 64 bytes of the file are
// "PILOTREV", the format 1 as u32, the number of records as u32, zeros, and a
// CRC-32C in the same place.
//
// If store.db is lost, move it away and start again: the address stays (it
// follows from the key), revocations stay, peers have to be asked once more.
//
// # Sources
//
// RFC 8032 (Ed25519), RFC 9180 (HPKE), RFC 3972 (why an address is checked
// against the key), RFC 1123 section 2.1 (names); Lamport, "Time, clocks, and the
// ordering of events in a distributed system" (1978), for the serials; Unicode
// UTS 39 and UAX 9 for what CleanText removes.
package trust
