package e2e_test

// An event is something that happens to two agents while they talk.
type natEvent struct {
	name  string
	goals map[string]float64 // p95 of what is measured
}

var natEvents = []natEvent{}
