//go:build !linux

package overlay

import "context"

// Changes is not to be had here: the network is looked at every minute.
func (hostUnderlay) Changes(context.Context) <-chan struct{} { return nil }
