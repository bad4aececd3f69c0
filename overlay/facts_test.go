package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// A node finds out what each kind of router does.
func TestFactsOfKinds(t *testing.T) {
	open, addr, port := natt.EndpointIndependent, natt.AddressDependent, natt.AddressAndPortDependent
	for kind, want := range map[natlab.Kind]natt.Traits{
		natlab.None:     {Mapping: natt.BehaviorNone, Filtering: open},
		natlab.Firewall: {Mapping: natt.BehaviorNone, Filtering: port},
		natlab.Full:     {Mapping: open, Filtering: open},
		natlab.Addr:     {Mapping: open, Filtering: addr},
		natlab.Port:     {Mapping: open, Filtering: port},
		natlab.Linux:    {Mapping: open, Filtering: port},
		natlab.Docker:   {Mapping: open, Filtering: port},
		natlab.Sym:      {Mapping: port, Filtering: port},
		natlab.SymAddr:  {Mapping: addr, Filtering: port},
		natlab.SymSeq:   {Mapping: port, Filtering: port, Step: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorldWith(t, true)
			defer w.close()
			a := w.agent("alice", kind)
			pass(3 * time.Second)
			got := make(chan natt.Traits, 1)
			a.loop.calls <- func(instant) { got <- a.loop.facts.Traits() }
			if f := <-got; f != want {
				t.Errorf("%v is taken for %+v, want %+v", kind, f, want)
			}
		})
	}
}
