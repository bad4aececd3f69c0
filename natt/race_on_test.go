//go:build race

package natt

const raceEnabled = true
