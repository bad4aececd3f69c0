package events

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services"
)

// connectPath, below OwnerPath, turns a request of the owner into an MQTT connection.
const connectPath = "connect"

// upgrade serves MQTT to a program of this machine over the connection of its
// request. It does not need the agent's address, nor a loopback device.
func (b *Broker) upgrade(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != "mqtt" {
		return refusal(packets.ErrProtocolViolation, http.StatusBadRequest, "want Upgrade: mqtt")
	}
	b.mu.Lock()
	serving := b.serving
	if serving == nil || serving.Err() != nil {
		b.mu.Unlock()
		return errEnds
	}
	b.locals.Add(1)
	b.mu.Unlock()
	defer b.locals.Done()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mqtt\r\n\r\n"); err != nil {
		return nil
	}
	b.serveMQTT(serving, conn, buffered.Reader, func() (services.Peer, bool) { return services.Peer{Self: true}, true })
	return nil
}

// Dial opens an MQTT connection to the broker of the agent whose use socket lies at
// socket, as its owner.
func Dial(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fmt.Fprintf(conn, "POST %s%s HTTP/1.1\r\nHost: pilot\r\nConnection: Upgrade\r\nUpgrade: mqtt\r\nContent-Length: 0\r\n\r\n", OwnerPath, connectPath)
	in := bufio.NewReader(conn)
	a, err := http.ReadResponse(in, nil)
	if err == nil && a.StatusCode != http.StatusSwitchingProtocols {
		err = &Refusal{Status: a.StatusCode, Reason: "the agent answered " + a.Status}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &bufferedConn{conn, in}, nil
}

// A bufferedConn has bytes that were read already.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.in.Read(p) }
