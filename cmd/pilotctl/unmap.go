package main

import (
	"context"
	"log/slog"
	"time"
)

// startTakes is when a daemon has done what it does once.
const startTakes = 10 * time.Second

// unmapStartLater gives back what only the start needed.
func unmapStartLater(ctx context.Context, logger *slog.Logger) {
	select {
	case <-ctx.Done():
	case <-time.After(startTakes):
		if err := unmapStart(); err != nil {
			logger.Debug("the memory of the start is kept", "error", err)
		}
	}
}
