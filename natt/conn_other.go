//go:build !linux

package natt

func listen(c ListenConfig) (PacketConn, error) { return listenGeneric(c, nil) }
