package e2e_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ms writes a duration in milliseconds; none as a dash.
func ms(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return strconv.FormatInt(d.Milliseconds(), 10)
}

func TestNATSweep(t *testing.T) {
	needLab(t)
	var p plans
	n, _ := strconv.Atoi(os.Getenv("PILOT_NAT_RUNS"))
	for _, c := range cells() {
		if want := os.Getenv("PILOT_NAT_PAIRS"); want != "" && !strings.Contains(","+want+",", ","+c.name+",") {
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.run(t, &p, n) })
	}
}
