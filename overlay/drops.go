package overlay

import (
	"sync/atomic"

	"github.com/pilotnet/pilot/overlay/firewall"
)

// A dropReason says why a packet was not carried. Every packet that Pilot
// refuses is counted under exactly one reason; none is logged.
type dropReason uint8

const (
	// From the TUN.
	dropOutVersion   dropReason = iota // not IPv6, or shorter than its header says
	dropOutSource                      // source is not this agent's address
	dropOutPrefix                      // destination outside the overlay
	dropOutMulticast                   // multicast and link-local chatter of the kernel
	dropOutNoPeer                      // no trusted peer has this address
	dropOutScope                       // the peer did not grant this port
	dropOutQueue                       // no session yet and the queue is full
	dropOutTooBig                      // does not fit two halves
	dropOutSession                     // session at its limit
	dropOutSend                        // the socket refused it
	dropOutStream                      // too old in the queue of a stream to a server
	// From the network, before authentication.
	dropInUnknown    // first byte is no message of ours
	dropInShort      // length is wrong for its type
	dropInInitTag    // INIT with an unknown knock tag: a stranger
	dropInInitMAC    // INIT whose MAC is wrong
	dropInInitSeen   // INIT that was answered before
	dropInInitBudget // INIT above the peer's budget
	dropInRespIndex  // RESP to nothing that we asked
	dropInIndex      // DATA for no session
	dropInLoop       // control loop busy
	// From the network, authenticated.
	dropInAuth        // does not open
	dropInReplay      // opened before
	dropInItem        // malformed item
	dropInVersion     // inner packet not IPv6 or malformed
	dropInSource      // inner source is not the peer's address
	dropInDestination // inner destination is not ours
	dropInHeader      // extension header, truncated or overlapping
	dropInFragment    // fragment of nothing admitted
	dropInICMP        // ICMPv6 type that is not carried
	dropInScope       // port not granted
	dropInPartial     // PARTIAL where it is not legal
	dropInFrag        // half of a packet that did not become whole
	dropInDevice      // the TUN refused it
	dropReasons
)

// carried is the verdict on what is not refused.
const carried = dropReasons

// How what the firewall refuses is counted.
var (
	dropIn = [...]dropReason{
		firewall.Pass: carried, firewall.BadSource: dropInSource, firewall.BadDestination: dropInDestination,
		firewall.OutOfScope: dropInScope, firewall.BadHeader: dropInHeader, firewall.StrayFragment: dropInFragment,
		firewall.BadICMP: dropInICMP,
	}
	dropOut = [...]dropReason{firewall.Pass: carried, firewall.OutOfScope: dropOutScope, firewall.BadHeader: dropOutVersion}
)

var dropNames = [dropReasons]string{
	"out_version", "out_source", "out_prefix", "out_multicast", "out_no_peer", "out_scope",
	"out_queue", "out_too_big", "out_session", "out_send", "out_stream",
	"in_unknown", "in_short", "in_init_tag", "in_init_mac", "in_init_seen", "in_init_budget",
	"in_resp_index", "in_index", "in_loop",
	"in_auth", "in_replay", "in_item", "in_version", "in_source", "in_destination", "in_header",
	"in_fragment", "in_icmp", "in_scope", "in_partial", "in_frag", "in_device",
}

// drops counts refused packets by reason. The zero value is ready; all methods
// are safe for concurrent use.
type drops struct{ n [dropReasons]atomic.Uint64 }

func (d *drops) add(r dropReason) { d.n[r].Add(1) }

// counts returns the reasons that occurred.
func (d *drops) counts() map[string]uint64 {
	m := make(map[string]uint64)
	for i := range d.n {
		if v := d.n[i].Load(); v > 0 {
			m[dropNames[i]] = v
		}
	}
	return m
}
