package demo

import "testing"

func TestRise(t *testing.T) {
	before := map[string]uint64{"in_index": 5, "in_short": 1, "out_scope": 1}
	after := map[string]uint64{"in_index": 7, "in_init_tag": 3, "in_short": 1, "in_replay": 4, "out_scope": 9}
	total, reasons := rise(before, after)
	if total != 5 || reasons != "init tag 3, index 2" {
		t.Errorf("rise = %d, %q", total, reasons)
	}
}
