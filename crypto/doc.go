// Package crypto holds the keys, the handshake and the sealed frames of Pilot:
// bytes and time in, bytes out. (Specification in progress: see the files.)
package crypto
