// Package tun is the virtual network interface.
package tun
