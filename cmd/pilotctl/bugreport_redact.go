package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/tun"
)

// knownFacts are words that tell who somebody is and that have no form by which
// they could be found in a text.
type knownFacts struct {
	host  string   // of this machine
	names []string // of agents
	hosts []string // of servers and proxies
}

func (f *knownFacts) add(s overlay.Status) {
	f.names = append(f.names, s.Name)
	for _, p := range s.Peers {
		f.names = append(f.names, p.Name)
	}
	f.requests(s.Requests)
	for _, server := range s.Servers {
		host, _, _ := strings.Cut(server.Server, "#")
		f.hosts = append(f.hosts, hostOnly(host))
	}
}

func (f *knownFacts) requests(list []overlay.Request) {
	for _, r := range list {
		f.names = append(f.names, r.Name)
	}
}

func (f *knownFacts) settings(s settings) {
	f.names = append(f.names, s.name)
	for _, server := range s.servers {
		f.hosts = append(f.hosts, server.Host)
	}
}

func (f *knownFacts) proxy(text string) {
	if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
		f.hosts = append(f.hosts, u.Hostname())
	}
}

// A redactor replaces what tells who somebody is. Equal things become equal
// words, so that a reader can still follow one peer or one address through the
// text.
type redactor struct {
	words map[string]string // replacement by what it stands for
	count map[string]int    // of a kind
	known []knownWord
	rules []rule
}

type knownWord struct {
	pattern *regexp.Regexp
	word    string
}

// A rule finds one form of thing. Its replacement is the kind, numbered, of what
// the first group matched, or of everything where there is none.
type rule struct {
	pattern *regexp.Regexp
	kind    string
	keep    func(string) bool // exceptions; may be nil
}

// rules are in the order in which they are applied: what holds others comes
// first.
func rules() []rule {
	return []rule{
		{regexp.MustCompile(`pilot-invite[0-9A-Za-z.]+`), "token", nil},
		{regexp.MustCompile(`(?m)^seed +(\S+)`), "secret", nil},
		{regexp.MustCompile(`(?s)-----BEGIN .*?-----END [A-Z ]+-----`), "secret", nil},
		{regexp.MustCompile(`://([^/\s@]+)@`), "userinfo", nil},
		{regexp.MustCompile(`(?i)\b(?:bearer|basic) +([0-9A-Za-z+/_=.~-]{6,})`), "secret", nil},
		{regexp.MustCompile(`(?i)\b[a-z_-]*(?:password|passwd|secret|token|authorization|api[_-]?key)"?\s*[=:]\s*("[^"]*"|[^\s,}]+)`), "secret", nil},
		{regexp.MustCompile(`[0-9A-Za-z.+_-]+@[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)+`), "contact", nil},
		{regexp.MustCompile(`[0-9A-Za-z+/]{40,}={0,2}`), "key", notMixed},
		{regexp.MustCompile(`[0-9A-Za-z+_-]{24,}={0,2}`), "key", notMixed},
		{regexp.MustCompile(`\b[a-z2-7]{26}\b|\b[a-z2-7]{52}\b|\b[0-9a-fA-F]{24,}\b`), "key", nil},
		{regexp.MustCompile(`\b[0-9]+:[0-9a-fA-F]{4}\.[0-9a-fA-F]{4}\.[0-9a-fA-F]{4}\b`), "address", nil},
		{regexp.MustCompile(`\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b`), "mac", nil},
		{regexp.MustCompile(`[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*`), "ip", mayStay},
		{regexp.MustCompile(`\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b`), "ip", mayStay},
		{regexp.MustCompile(`\b([0-9A-Za-z-]+)\.pilot\.internal`), "name", func(s string) bool { return s == "dns" || s == "_tcp" }},
		{regexp.MustCompile(`\b(?:peer|name)=("[^"]*"|\S+)`), "name", nil},
		{regexp.MustCompile(`/(?:home|Users)/([^/\s"]+)`), "user", nil},
	}
}

// notMixed reports that a long word is just a word: keys have digits and letters.
func notMixed(s string) bool {
	return !strings.ContainsAny(s, "0123456789") || strings.Trim(s, "0123456789-+=_/") == ""
}

// mayStay reports that an address tells nobody who somebody is, or is none.
func mayStay(s string) bool {
	a, err := netip.ParseAddr(strings.TrimRight(s, ":"))
	if err != nil {
		if a, err = netip.ParseAddr(s); err != nil {
			return true
		}
	}
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Is4() && (a.IsPrivate() || a.IsLinkLocalUnicast()) ||
		a == dns.Address() || a == ipam.Prefix().Addr() || a == tun.WellKnownProbe()
}

func newRedactor(f knownFacts) *redactor {
	r := &redactor{words: map[string]string{}, count: map[string]int{}, rules: rules()}
	add := func(kind string, list ...string) {
		for _, s := range list {
			if s == "" || isAddress(s) || strings.Trim(s, "[]") == "localhost" {
				continue
			}
			r.known = append(r.known, knownWord{regexp.MustCompile(`(?i)(^|[^0-9A-Za-z])` + regexp.QuoteMeta(s) + `([^0-9A-Za-z]|$)`), r.word(kind, strings.ToLower(s))})
		}
	}
	add("host", f.hosts...)
	add("name", f.names...)
	add("machine", f.host)
	// A name may begin another one.
	slices.SortStableFunc(r.known, func(a, b knownWord) int { return cmp.Compare(len(b.pattern.String()), len(a.pattern.String())) })
	return r
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

// word is the replacement of a thing, the same one each time.
func (r *redactor) word(kind, thing string) string {
	if w, ok := r.words[kind+" "+thing]; ok {
		return w
	}
	r.count[kind]++
	w := fmt.Sprintf("%s#%d", kind, r.count[kind])
	r.words[kind+" "+thing] = w
	return w
}

// redact returns text with everything replaced.
func (r *redactor) redact(text []byte) []byte {
	s := string(text)
	for _, rule := range r.rules {
		s = r.apply(rule, s)
	}
	for _, k := range r.known {
		for { // two of them may share what stands between
			next := k.pattern.ReplaceAllString(s, "${1}<"+k.word+">${2}")
			if next == s {
				break
			}
			s = next
		}
	}
	return []byte(s)
}

func (r *redactor) apply(rule rule, s string) string {
	var out strings.Builder
	end := 0
	for _, m := range rule.pattern.FindAllStringSubmatchIndex(s, -1) {
		from, to := m[0], m[1]
		if len(m) > 2 && m[2] >= 0 {
			from, to = m[2], m[3]
		}
		thing := s[from:to]
		if rule.keep != nil && rule.keep(thing) || strings.HasPrefix(thing, "<") {
			continue
		}
		out.WriteString(s[end:from])
		out.WriteString("<" + r.word(rule.kind, strings.ToLower(strings.Trim(thing, `"`))) + ">")
		end = to
	}
	out.WriteString(s[end:])
	return out.String()
}
