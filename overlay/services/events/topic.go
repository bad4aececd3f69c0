package events

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// What a topic or a filter may have. Without a bound one subscription could fill
// the memory with levels.
const (
	maxTopic  = 512 // bytes
	maxLevels = 32
)

// CheckTopic says why nothing can be published under a topic; nil: it can.
// Topics that begin with $ belong to brokers (MQTT 5, 4.7.2), and this one has none.
func CheckTopic(topic string) error {
	if err := checkText("topic", topic); err != nil {
		return err
	}
	if strings.ContainsAny(topic, "+#") {
		return fmt.Errorf("events: topic %.60q: has a wildcard", topic)
	}
	return nil
}

// CheckFilter says why a filter is none; nil: it is one (MQTT 5, 4.7.1). Filters
// that begin with $ are refused, and with them shared subscriptions: those would
// let a peer read under another filter than the one that it names.
func CheckFilter(filter string) error {
	if err := checkText("filter", filter); err != nil {
		return err
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case level == "#" && i < len(levels)-1:
			return fmt.Errorf("events: filter %.60q: # must be the last level", filter)
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return fmt.Errorf("events: filter %.60q: + and # must be whole levels", filter)
		}
	}
	return nil
}

func checkText(what, s string) error {
	switch {
	case s == "":
		return errors.New("events: " + what + ": is empty")
	case len(s) > maxTopic:
		return fmt.Errorf("events: %s: has %d bytes; the most is %d", what, len(s), maxTopic)
	case strings.Count(s, "/") >= maxLevels:
		return fmt.Errorf("events: %s: has more than %d levels", what, maxLevels)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError }):
		return fmt.Errorf("events: %s %.60q: has control characters or is no UTF-8", what, s)
	case s[0] == '$':
		return fmt.Errorf("events: %s %.60q: begins with $", what, s)
	}
	return nil
}

// Matches says whether a valid filter selects a valid topic.
func Matches(filter, topic string) bool { return Covers(filter, topic) }

// Covers says whether every topic that narrow selects is also selected by wide;
// both must be valid. A topic is a filter that selects itself.
func Covers(wide, narrow string) bool {
	for {
		w, wideRest, wideMore := strings.Cut(wide, "/")
		n, narrowRest, narrowMore := strings.Cut(narrow, "/")
		switch {
		case w == "#":
			return true
		case n == "#", w != "+" && w != n:
			return false
		case !narrowMore:
			return !wideMore || wideRest == "#" // a/# selects a too
		case !wideMore:
			return false
		}
		wide, narrow = wideRest, narrowRest
	}
}
