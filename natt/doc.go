// Package natt reaches a peer on the underlay: sockets, candidate addresses, and the choice of a path.
package natt
