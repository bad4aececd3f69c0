package demo

import (
	"io"
	"os"
)

// Options say how the story is told.
type Options struct {
	Out   io.Writer // gets the transcript
	Color bool
	Keep  bool // leave the lab up
}

// A Result is a story that went well.
type Result struct {
	Seconds float64 `json:"seconds"`
	Kept    bool    `json:"kept"`
}

// Streams are the input and outputs of a program in the lab.
type Streams struct{ In, Out, Err *os.File }
