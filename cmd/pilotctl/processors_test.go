package main

import "testing"

func TestWidth(t *testing.T) {
	repeat := func(load float64, n int) (s []float64) {
		for range n {
			s = append(s, load)
		}
		return s
	}
	for _, test := range []struct {
		name  string
		loads []float64
		want  bool // after the last
	}{
		{"idle", repeat(0.01, 100), false},
		{"some packets", repeat(0.1, 100), false},
		{"busy", []float64{0.5}, true},
		{"stays", repeat(0.7, 100), true},
		{"needs two at once", repeat(1.7, 10), false},
		{"has become too much", []float64{0.6, 0.95}, false},
		{"does not come back at once", append([]float64{0.6, 0.95}, repeat(0.5, wideHold)...), false},
		{"comes back", append([]float64{0.6, 0.95}, repeat(0.5, wideHold+1)...), true},
		{"a pause", append([]float64{0.6}, repeat(0.01, calmUntil-1)...), true},
		{"the end", append([]float64{0.6}, repeat(0.01, calmUntil)...), false},
		{"pauses", append(append([]float64{0.6}, repeat(0.01, calmUntil-1)...), 0.5, 0.01), true},
	} {
		var w width
		var got bool
		for _, l := range test.loads {
			got = w.next(l)
		}
		if got != test.want {
			t.Errorf("%s: narrow %v after %v", test.name, got, test.loads)
		}
	}
}
