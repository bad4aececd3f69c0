package dns

import (
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	ttl         = 30 // seconds that an answer is good for
	negativeTTL = 5  // and one that there is none

	headerSize = 12
	plainSize  = 512  // of a UDP reply without EDNS
	ednsSize   = 1232 // of one with EDNS, at most; also what we say we take

	rcodeBadVersion dnsmessage.RCode = 16 // RFC 6891 9; the header holds the low 4 bits

	typeIXFR dnsmessage.Type = 251
)

// Answer appends the reply to a query that came in one datagram, and returns dst
// as it was if the query deserves none. It neither waits nor keeps anything.
func (z *Zone) Answer(dst, query []byte) []byte {
	q, ok := parse(query)
	if !ok {
		return dst
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode,
		RecursionDesired: q.header.RecursionDesired, RCode: q.rcode,
	}}
	if q.asked {
		m.Questions = []dnsmessage.Question{q.question}
	}
	if q.rcode == dnsmessage.RCodeSuccess {
		z.resolve(&m, &q.question)
	}
	limit := plainSize
	if q.edns {
		limit = min(max(int(q.size), plainSize), ednsSize)
		m.Additionals = []dnsmessage.Resource{q.option(m.RCode)}
	}
	m.RCode &= 15
	reply, err := m.AppendPack(dst)
	if err == nil && len(reply)-len(dst) > limit {
		m.Truncated, m.Answers, m.Authorities = true, nil, nil
		reply, err = m.AppendPack(dst)
	}
	if err != nil {
		return dst // a name that can be read but not written: there is none
	}
	return reply
}

// A query is what parse found.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	asked    bool // there is a question
	rcode    dnsmessage.RCode
	edns     bool
	size     uint16 // that the other side takes, by EDNS
	dnssec   bool
}

// parse reads a query. It reports false for what must not be answered; if rcode
// is not success it is the answer.
func parse(b []byte) (q query, ok bool) {
	var p dnsmessage.Parser
	header, err := p.Start(b)
	if err != nil || header.Response {
		return q, false
	}
	q.header = header
	if header.OpCode != 0 {
		q.rcode = dnsmessage.RCodeNotImplemented
		return q, true
	}
	q.rcode = dnsmessage.RCodeFormatError
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		return q, true
	}
	q.question, q.asked = questions[0], true
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, true
	}
	version := uint8(0)
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || p.SkipAdditional() != nil || h.Type == dnsmessage.TypeOPT && (q.edns || h.Name.Length != 1) {
			return q, true
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.size, q.dnssec, version = true, uint16(h.Class), h.DNSSECAllowed(), uint8(h.TTL>>16)
		}
	}
	q.rcode = dnsmessage.RCodeSuccess
	if version != 0 {
		q.rcode = rcodeBadVersion
	}
	return q, true
}

// option is the EDNS part of the reply.
func (q *query) option(rcode dnsmessage.RCode) dnsmessage.Resource {
	var h dnsmessage.ResourceHeader
	// It fails for no value that these can have.
	_ = h.SetEDNS0(ednsSize, rcode, q.dnssec)
	return dnsmessage.Resource{Header: h, Body: new(dnsmessage.OPTResource)}
}

// resolve fills in what the zone knows.
func (z *Zone) resolve(m *dnsmessage.Message, q *dnsmessage.Question) {
	m.RCode = dnsmessage.RCodeRefused
	if q.Type == dnsmessage.TypeAXFR || q.Type == typeIXFR || q.Class != dnsmessage.ClassINET && q.Class != dnsmessage.ClassANY {
		return
	}
	name := fold(&q.Name)
	origin := zoneOf(name)
	if origin == "" {
		return
	}
	// There is nothing below us that would need recursion, so that it is available.
	m.Authoritative, m.RecursionAvailable = true, m.RecursionDesired
	m.RCode = dnsmessage.RCodeNameError
	if r := (*z.data.Load())[name]; r != nil {
		m.RCode = dnsmessage.RCodeSuccess
		for _, body := range r.of(q.Type, origin) {
			m.Answers = append(m.Answers, resource(q.Name, ttl, body))
		}
	}
	if len(m.Answers) == 0 {
		m.Authorities = []dnsmessage.Resource{resource(mustName(origin), negativeTTL, authority())}
	}
}

// of returns the records of one type; for ANY those of the first type that has
// some.
func (r *records) of(t dnsmessage.Type, origin string) (list []dnsmessage.ResourceBody) {
	all := t == dnsmessage.TypeALL
	add := func(kind dnsmessage.Type, bodies ...dnsmessage.ResourceBody) {
		if t == kind || all && len(list) == 0 {
			list = append(list, bodies...)
		}
	}
	if r.apex {
		add(dnsmessage.TypeSOA, authority())
		add(dnsmessage.TypeNS, &dnsmessage.NSResource{NS: mustName(serverName)})
	}
	if r.addr.IsValid() {
		add(dnsmessage.TypeAAAA, aaaa(r.addr))
	}
	if len(r.txt) > 0 {
		add(dnsmessage.TypeTXT, &dnsmessage.TXTResource{TXT: r.txt})
	}
	var more []dnsmessage.ResourceBody
	for _, name := range r.ptr {
		more = append(more, &dnsmessage.PTRResource{PTR: mustName(name)})
	}
	add(dnsmessage.TypePTR, more...)
	more = nil
	for i := range r.srv {
		more = append(more, &r.srv[i])
	}
	add(dnsmessage.TypeSRV, more...)
	return list
}

func aaaa(a netip.Addr) dnsmessage.ResourceBody {
	return &dnsmessage.AAAAResource{AAAA: a.As16()}
}

// authority is the SOA of a zone. Its serial does not count the changes, since
// nobody transfers the zone and a question must not learn of them.
func authority() dnsmessage.ResourceBody {
	return &dnsmessage.SOAResource{
		NS: mustName(serverName), MBox: mustName("hostmaster." + zone), Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, MinTTL: negativeTTL,
	}
}

func resource(name dnsmessage.Name, seconds uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: seconds},
		Body:   body,
	}
}

// mustName makes a name of ours, of which none is too long: a label of 32, one
// of 16, and the zone.
func mustName(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }
