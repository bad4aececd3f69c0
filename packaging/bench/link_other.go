//go:build !linux

package main

import (
	"errors"
	"time"
)

type badLink struct {
	loss, reorder float64
	delay         time.Duration
}

func (*world) join(badLink) error { return errors.New("the link needs Linux") }

func sink() error { return errors.New("the flood needs Linux") }

func flood(string, string, string) error { return errors.New("the flood needs Linux") }
