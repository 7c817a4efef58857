// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// tlsHandshake is the first byte of every TLS connection: the content type of RFC 8446, section 5.1. A cleartext
// connection begins with the P of HTTP/2's "PRI".
const tlsHandshake = 0x16

var (
	errCleartext = errors.New("cleartext connection refused: the controller wants TLS")
	errNoTLS     = errors.New("TLS connection refused: the controller has no certificate")
)

// transport is the server's side of connections that may be TLS or cleartext, on one port: the first byte tells.
type transport struct {
	tls       credentials.TransportCredentials // nil: none
	cleartext bool                             // may come
}

func newTransport(config *tls.Config, cleartext bool) *transport {
	t := &transport{cleartext: cleartext}
	if config != nil {
		// Before NewTLS, which adds it to a copy: configurations for single clients are made from this one.
		config.NextProtos = []string{"h2"}
		t.tls = credentials.NewTLS(config)
	}
	return t
}

// ServerHandshake looks at the first byte and goes on as it says. The caller bounds the time.
func (t *transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p := &peeked{Conn: conn, left: 1}
	if _, err := io.ReadFull(conn, p.first[:]); err != nil {
		return nil, nil, fmt.Errorf("first byte: %w", err)
	}
	switch {
	case p.first[0] == tlsHandshake && t.tls != nil:
		return t.tls.ServerHandshake(p)
	case p.first[0] == tlsHandshake:
		return nil, nil, errNoTLS
	case !t.cleartext:
		return nil, nil, errCleartext
	}
	return insecure.NewCredentials().ServerHandshake(p)
}

// ClientHandshake is not for servers.
func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info says what is special about the transport: nothing.
func (t *transport) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone gives a copy.
func (t *transport) Clone() credentials.TransportCredentials {
	c := *t
	if c.tls != nil {
		c.tls = c.tls.Clone()
	}
	return &c
}

// OverrideServerName is for clients, and deprecated.
func (t *transport) OverrideServerName(string) error { return errors.ErrUnsupported }

// peeked is a connection whose first byte has been read.
type peeked struct {
	net.Conn
	first [1]byte
	left  int // of first, to be read again
}

func (p *peeked) Read(b []byte) (int, error) {
	if p.left > 0 && len(b) > 0 {
		b[0] = p.first[0]
		p.left = 0
		return 1, nil
	}
	return p.Conn.Read(b)
}
