package relay

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// A RecordKind says what a RECORD is for.
type RecordKind uint8

// The kinds of RECORD.
const (
	Ping   RecordKind = 1 // agent to server
	Pong   RecordKind = 2 // server to agent, the answer
	Notice RecordKind = 3 // server to agent
	Bye    RecordKind = 4 // agent to server
	Reveal RecordKind = 5 // agent to server: tell the other end of a channel where you see me, and me where it is
	Seen   RecordKind = 6 // server to agent, the answer
)

// FlagMail in a PONG says that mail waits.
const FlagMail = 1

// FlagProve in a SEEN says that the REVEAL did not show that its sender reads at its
// address: send it again with this proof.
const FlagProve = 1

// Codes of a NOTICE, in its Echo.
const (
	NoticeMail       = 1
	NoticeSuperseded = 2
	NoticeProbe      = 3 // answer with a PING
)

// A Record is the content of a RECORD datagram.
type Record struct {
	Kind     RecordKind
	Flags    uint8
	Echo     uint64    // REVEAL, SEEN: the channel, as its target numbers it
	Time     time.Time // whole milliseconds; the zero Time is 0 on the wire
	Proof    uint64    // REVEAL, SEEN, in the place of Time: at most 48 bits
	Observed netip.AddrPort
}

const (
	recordPlain  = 40
	recordHeader = 12
)

// AppendRecord seals r for session and appends the datagram to dst.
func AppendRecord(dst []byte, session uint64, tr *crypto.Transport, r Record) ([]byte, error) {
	dst = append(dst, TypeRecord, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, session)
	var plain [recordPlain]byte
	return tr.Seal(dst, appendRecordBody(plain[:0], r))
}

// ParseRecord splits a RECORD datagram into its session number and the sealed
// part, whose first 8 bytes are the counter.
func ParseRecord(b []byte) (session uint64, sealed []byte, ok bool) {
	if len(b) != RecordSize || binary.BigEndian.Uint32(b) != TypeRecord<<24 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(b[4:]), b[recordHeader:], true
}

// OpenRecord opens the sealed part of a RECORD.
func OpenRecord(tr *crypto.Transport, sealed []byte) (Record, error) {
	var plain [recordPlain]byte
	b, err := tr.Open(plain[:0], sealed)
	if err != nil {
		return Record{}, err
	}
	return parseRecordBody(b)
}

func appendRecordBody(dst []byte, r Record) []byte {
	dst = append(dst, byte(r.Kind), r.Flags, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, r.Echo)
	if r.Kind == Reveal || r.Kind == Seen {
		dst = binary.BigEndian.AppendUint64(dst, r.Proof)
	} else {
		dst = binary.BigEndian.AppendUint64(dst, millis(r.Time))
	}
	dst = appendAddr(dst, r.Observed)
	return append(dst, 0, 0)
}

func parseRecordBody(b []byte) (Record, error) {
	if len(b) != recordPlain || b[2]|b[3]|b[38]|b[39] != 0 || b[0] < byte(Ping) || b[0] > byte(Seen) {
		return Record{}, ErrMalformed
	}
	moment := binary.BigEndian.Uint64(b[12:])
	at, ok := fromMillis(moment)
	addr, okAddr := parseAddr(b[20:])
	if !ok || !okAddr {
		return Record{}, ErrMalformed
	}
	r := Record{Kind: RecordKind(b[0]), Flags: b[1], Echo: binary.BigEndian.Uint64(b[4:]), Observed: addr}
	if r.Kind == Reveal || r.Kind == Seen {
		r.Proof = moment
	} else {
		r.Time = at
	}
	return r, nil
}

func millis(t time.Time) uint64 {
	if t.IsZero() || t.UnixMilli() < 0 {
		return 0
	}
	return uint64(t.UnixMilli())
}

// fromMillis refuses what no clock says (beyond 48 bits), so that arithmetic on
// times cannot overflow.
func fromMillis(ms uint64) (time.Time, bool) {
	if ms == 0 {
		return time.Time{}, true
	}
	return time.UnixMilli(int64(ms)), ms < 1<<48
}
