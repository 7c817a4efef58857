// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"context"
	"io"
	"net"
	"time"
)

// Take looks at the first bytes of a connection that came to the TCP listener. If they are of an
// attempt, the connection is taken: Punch will return it, or it is closed. Otherwise the caller has it back, with nothing lost.
// Take reads until it knows, which for other protocols is the first byte, up to the read deadline of the connection; it does not
// close the connection when that fails.
func (p *Puncher) Take(c net.Conn) (rest net.Conn, taken bool, err error) {
	var b [len(helloMagic)]byte
	for i := range b {
		if _, err := io.ReadFull(c, b[i:i+1]); err != nil {
			return c, false, err
		}
		if b[i] != helloMagic[i] {
			return &unreadConn{Conn: c, unread: b[:i+1]}, false, nil
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.strangers <- struct{}{}:
		if !p.closed {
			p.wg.Go(func() { p.welcome(c) })
			return nil, true, nil
		}
		<-p.strangers
	default: // too many
	}
	p.counters.strangers.Add(1)
	discard(c)
	return nil, true, nil
}

// welcome reads the rest of a greeting and gives the connection to its attempt.
func (p *Puncher) welcome(c net.Conn) {
	defer func() { <-p.strangers }()
	_ = c.SetDeadline(time.Now().Add(greetTime))
	stop := context.AfterFunc(p.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [helloSize]byte
	copy(b[:], helloMagic)
	var s *session
	if _, err := io.ReadFull(c, b[len(helloMagic):]); err == nil {
		id, n, err := parseHello(b[:])
		p.mu.Lock()
		s = p.sessions[id]
		p.mu.Unlock()
		if err == nil && s != nil && stop() {
			_ = c.SetDeadline(time.Time{})
			if s.spawn(func() { s.shake(c, TCP, &n) }) {
				return
			}
		}
	}
	p.counters.strangers.Add(1)
	discard(c)
}

// unreadConn is a connection whose first bytes have been looked at.
type unreadConn struct {
	net.Conn
	unread []byte
}

func (c *unreadConn) Read(b []byte) (int, error) {
	if len(c.unread) > 0 && len(b) > 0 {
		n := copy(b, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// NetConn is the connection itself, for its options.
func (c *unreadConn) NetConn() net.Conn { return c.Conn }
