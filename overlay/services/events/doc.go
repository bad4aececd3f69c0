// Package events is the event service of an agent, port 1002: publish and
// subscribe over MQTT 5 (and 3.1.1) and, on the same port, over HTTP with
// Server-Sent Events. The first byte of a connection tells which.
//
// # Who may do what
//
// The caller is known by its source address; there is no user, no password and no
// token, and those that a client sends mean nothing.
//
//	a peer   publishes below peer/NAME/, NAME being the petname that the owner
//	         gave it, and subscribes to what the owner allowed: at first public/#
//	owner    programs of this machine, at the agent's own address or over the
//	         local API: everything
//
// A subscription is granted when an allowed filter covers it, and every event is
// checked again on its way out: what is no longer allowed stops at once. Wills and
// retained events pass the same checks as others. There are no $SYS topics, no
// shared subscriptions and no topic aliases, so that nothing is read or written
// under another name than the one that was checked. Client identifiers of
// different peers never meet.
//
// # With the tools of others
//
//	mosquitto_sub -h bob.pilot.internal -p 1002 -V 5 -q 1 -t 'public/#'
//	mosquitto_sub -h bob.pilot.internal -p 1002 -V 5 -q 1 -t 'public/#' -c -i logger -x 86400
//	mosquitto_pub -h bob.pilot.internal -p 1002 -V 5 -q 1 -t peer/alice/log -m hello
//
//	curl -d hello        http://bob.pilot.internal:1002/topics/peer/alice/log
//	curl -T state.json   http://bob.pilot.internal:1002/topics/peer/alice/state
//	curl -N -H 'Accept: text/event-stream' 'http://bob.pilot.internal:1002/topics/public/%23'
//
// Without -V 5 mosquitto speaks 3.1.1, which has no words for a refusal: there the
// connection is closed instead of an event being dropped.
//
// # HTTP
//
//	GET    /                    what the caller may do here
//	POST   /topics/TOPIC        publish the body; answered when it is stored
//	PUT    /topics/TOPIC        publish, and retain it for later subscribers
//	DELETE /topics/TOPIC        end that
//	GET    /topics/TOPIC        what is retained; for a filter, a list as JSON
//	GET    /topics/FILTER       with Accept: text/event-stream: subscribe
//	GET    /topics?filter=F&filter=F   the same with several filters
//
// In a URL # is written %23. Each event of a stream is one line of JSON, an Event,
// with an id. After Last-Event-ID the stream goes on with the events since then
// that are still in memory (4,096 events or 8 MiB); if some may be missing it begins
// with an event named gap. A stream that is read too slowly is ended, so that the
// client comes again with Last-Event-ID. Streams are at most once; what must not
// be lost needs an MQTT session.
//
// # What is stored, and when
//
// An event at QoS 1 is acknowledged after it is on the disk for every session
// that outlives its connection (Session Expiry Interval above 0; Clean Session 0
// in 3.1.1) and selects it; many events share one write. Such sessions,
// their subscriptions, what waits in them, and retained events survive the death
// of the process and of the machine. What a subscriber did not acknowledge comes
// again, in order, and may come twice. A session that ends with its connection
// has nothing to survive, and events only for such ones are not written. QoS 0 is
// best effort; QoS 2 is not offered. Wills are kept in memory only.
//
// # Limits
//
// An event has 1 MiB of payload, a topic 512 bytes and 32 levels. A peer has 64
// sessions (streams count) of 256 subscriptions, kept for 7 days without a
// connection at most, and two quotas of 64 MiB, an event counting 256 bytes beside
// its own: for its events that wait for others, and for events that wait for it.
// Its retained events have 4 MiB. An event over the publisher's quota is refused
// with 0x97 and the figures. One that a subscriber's quota has no room for is
// stored for the others, and the publisher gets 0x97 saying that somebody was left
// out: a subscriber that does not read cannot hold up the rest, and nothing is lost
// without a word. A connection has 10 s to begin and 30 s to take what is
// written to it.
//
// # The library
//
// The protocol on each connection is spoken by mochi-mqtt. It would acknowledge
// an event and then store it, keep queues in memory with a fixed length and drop
// what exceeds that, and send again in no order. So a hook takes every event,
// acknowledgement and session from it: this package stores, acknowledges, queues
// and sends by itself. It also panics on some malformed packets, such as a
// SUBSCRIBE of 8 bytes; a panic ends that connection and is logged.
//
// # Files
//
//	events/events.db   bbolt: events, queues, sessions, retained events, access
package events
