package natt

// ListenGeneric opens the socket that systems without an implementation of their own use.
func ListenGeneric(c ListenConfig) (PacketConn, error) {
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = DefaultReceiveBuffer
	}
	return listenGeneric(c, nil)
}
