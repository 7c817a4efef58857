// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// alertCredentials are those of TLS, for connections that tell why they were refused. A controller refuses a certificate when the
// handshake is over for the client: it sends an alert and closes. A client that is writing at that moment hears of a
// broken pipe first, and gRPC would report that.
type alertCredentials struct {
	credentials.TransportCredentials
}

// ClientHandshake implements credentials.TransportCredentials.
func (c alertCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return &alertConn{Conn: conn, ended: make(chan struct{})}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c alertCredentials) Clone() credentials.TransportCredentials {
	return alertCredentials{c.TransportCredentials.Clone()}
}

// alertWait is how long a failed write waits for the alert, which is there already if there is one.
const alertWait = time.Second

// alertConn is a connection whose failed writes say what the reader, which gRPC always has, was told.
type alertConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{} // closed when Read has failed
	why   error         // set before that
}

func (c *alertConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.once.Do(func() { c.why = err; close(c.ended) })
	}
	return n, err
}

func (c *alertConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		timer := time.NewTimer(alertWait)
		defer timer.Stop()
		select {
		case <-c.ended:
			err = c.why
		case <-timer.C:
		}
	}
	return n, err
}
