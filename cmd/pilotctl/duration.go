package main

import (
	"strconv"
	"strings"
	"time"
)

// parseDuration reads a time to live: what time.ParseDuration reads, and whole
// days and weeks as in 30d and 2w.
func parseDuration(s string) (time.Duration, error) {
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			n, err := strconv.ParseUint(number, 10, 16)
			if err != nil {
				break
			}
			return time.Duration(n) * unit, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, usagef("%.40q is no length of time", s).WithHint("write it as 90s, 30m, 12h, 30d or 2w")
	}
	return d, nil
}
