package main

import (
	"net/http"

	"github.com/pilotnet/pilot/overlay/services"
)

// mounts are the owner's sides of the services that have one.
func mounts(list []services.Service) map[string]http.Handler {
	m := map[string]http.Handler{}
	for _, s := range list {
		if o, ok := s.(interface {
			Owner() (path string, h http.Handler)
		}); ok {
			path, h := o.Owner()
			m[path] = h
		}
	}
	return m
}
