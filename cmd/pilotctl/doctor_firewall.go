package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pilotnet/pilot/ipam"
)

// A firewallFact is what can be known of the machine's own packet filter.
type firewallFact struct {
	hooks  []hook // where it drops what no rule lets pass
	unseen error
}

// A hook is a place where packets are filtered and where those that no rule lets
// pass are dropped. Whether one packet passes is more than can be told from
// outside; whether the rules speak of the overlay at all is not.
type hook struct {
	chain    string // as the tool calls it: "inet filter input"
	at       string // "input" or "output"
	tool     string // "nft" or "ip6tables"
	mentions []string
}

// names tells whether the rules speak of a device, or of our addresses.
func (h hook) names(device string) bool {
	return slices.ContainsFunc(h.mentions, func(m string) bool {
		return m == device || m == ipam.Prefix().Addr().String() ||
			strings.HasSuffix(m, "*") && strings.HasPrefix(device, strings.TrimSuffix(m, "*")) ||
			strings.HasSuffix(m, "+") && strings.HasPrefix(device, strings.TrimSuffix(m, "+"))
	})
}

// opening is a command that lets the overlay's packets pass.
func (h hook) opening(device string) string {
	if h.tool == "nft" {
		way := "iifname"
		if h.at == "output" {
			way = "oifname"
		}
		return fmt.Sprintf("nft insert rule %s %s %s accept", h.chain, way, device)
	}
	if h.at == "output" {
		return fmt.Sprintf("ip6tables -I OUTPUT -o %s -j ACCEPT", device)
	}
	return fmt.Sprintf("ip6tables -I INPUT -i %s -j ACCEPT", device)
}

// parseNFT reads what "nft -j list ruleset" prints (libnftables-json(5)).
func parseNFT(text []byte) ([]hook, error) {
	var list struct {
		Objects []struct {
			Chain *struct {
				Family, Table, Name, Hook, Policy string
			}
			Rule *struct {
				Family, Table, Chain string
				Expr                 []map[string]json.RawMessage
			}
			Set *struct {
				Family, Table string
				Elem          json.RawMessage
			}
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, errors.New("its output is not what its manual says")
	}
	type table struct{ family, name string }
	mentions, drops := map[table][]string{}, map[string]bool{}
	for _, o := range list.Objects {
		if s := o.Set; s != nil { // a rule names the set, and the set the device
			t := table{s.Family, s.Table}
			mentions[t] = append(mentions[t], literals(s.Elem)...)
		}
		if r := o.Rule; r != nil {
			t := table{r.Family, r.Table}
			for _, e := range r.Expr {
				mentions[t] = append(mentions[t], literals(e["match"])...)
			}
			if unconditional(r.Expr) {
				drops[r.Family+" "+r.Table+" "+r.Chain] = true
			}
		}
	}
	var hooks []hook
	for _, o := range list.Objects {
		c := o.Chain
		if c == nil || c.Family != "inet" && c.Family != "ip6" || c.Hook != "input" && c.Hook != "output" {
			continue
		}
		name := c.Family + " " + c.Table + " " + c.Name
		if c.Policy == "drop" || drops[name] {
			hooks = append(hooks, hook{chain: name, at: c.Hook, tool: "nft", mentions: mentions[table{c.Family, c.Table}]})
		}
	}
	return hooks, nil
}

// unconditional reports whether a rule drops whatever comes to it.
func unconditional(expr []map[string]json.RawMessage) bool {
	ends := false
	for _, e := range expr {
		for kind := range e {
			switch kind {
			case "drop", "reject":
				ends = true
			case "counter", "log":
			default:
				return false
			}
		}
	}
	return ends
}

// literals are the texts in a piece of JSON, wherever in it.
func literals(raw json.RawMessage) (list []string) {
	var v any
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return nil
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			list = append(list, v)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(v)
	return list
}

// parseIPTables reads what ip6tables-save prints.
func parseIPTables(text []byte) ([]hook, error) {
	var mentions []string
	closed := map[string]bool{}
	filter := false
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case strings.HasPrefix(f[0], "*"):
			filter = f[0] == "*filter"
		case !filter:
		case strings.HasPrefix(f[0], ":") && len(f) > 1:
			closed[f[0][1:]] = f[1] == "DROP"
		case f[0] == "-A" && len(f) == 4 && f[2] == "-j" && (f[3] == "DROP" || f[3] == "REJECT"):
			closed[f[1]] = true
		case f[0] == "-A":
			for _, word := range f[2:] {
				address, _, _ := strings.Cut(word, "/")
				mentions = append(mentions, address)
			}
		}
	}
	var hooks []hook
	for _, name := range []string{"INPUT", "OUTPUT"} {
		if closed[name] {
			hooks = append(hooks, hook{chain: "ip6tables " + name, at: strings.ToLower(name), tool: "ip6tables", mentions: mentions})
		}
	}
	return hooks, nil
}
