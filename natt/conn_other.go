//go:build !linux && !darwin

package natt

func listen(c ListenConfig) (PacketConn, error) { return listenGeneric(c, nil) }
