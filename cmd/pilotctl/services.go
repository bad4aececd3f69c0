package main

import (
	"slices"
	"strings"

	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/echo"
	"github.com/pilotnet/pilot/overlay/services/events"
	"github.com/pilotnet/pilot/overlay/services/exchange"
	"github.com/pilotnet/pilot/overlay/services/tasks"
)

// knownServices are those that an agent can offer, in the order of their ports.
func knownServices() []services.Service {
	return []services.Service{echo.New(), exchange.NewService(), events.NewService(), tasks.NewService(api.Caller)}
}

const (
	allServices = "all"
	noServices  = "none"
)

// chooseServices reads what --services says.
func chooseServices(text string) ([]services.Service, error) {
	known := knownServices()
	switch text {
	case "", allServices:
		return known, nil
	case noServices:
		return nil, nil
	}
	var chosen []services.Service
	for name := range strings.SplitSeq(text, ",") {
		i := slices.IndexFunc(known, func(s services.Service) bool { return s.Name() == strings.TrimSpace(name) })
		if i < 0 {
			return nil, usagef("--services: there is no service %.40q", name).WithHint("%s", servicesHint(known))
		}
		if !slices.Contains(chosen, known[i]) {
			chosen = append(chosen, known[i])
		}
	}
	return chosen, nil
}

func servicesHint(known []services.Service) string {
	var names []string
	for _, s := range known {
		names = append(names, s.Name())
	}
	return "all, none, or some of " + strings.Join(names, ",")
}
