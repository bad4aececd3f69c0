package relay

import (
	"context"
	"errors"
)

// Withdraw shows our signed withdrawal (package ipam). When it returns nil the
// server knows us no more: it has forgotten claim, card and mail for good, or had
// never heard of them.
func (c *Control) Withdraw(ctx context.Context, signed []byte) error {
	_, err := c.do(ctx, Request{Op: OpWithdraw, Body: signed})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
