// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// An Addr is the address of a member on its swarm: its ID, whatever its addresses on the networks below.
type Addr struct{ ID Hash }

// Network returns "swarm".
func (Addr) Network() string { return "swarm" }

// String returns the ID as 64 hexadecimal digits, which member.ParseID reads.
func (a Addr) String() string { return a.ID.String() }

var (
	_ net.Addr       = Addr{}
	_ net.PacketConn = (*PacketConn)(nil)
)

// A PacketConn makes the swarm a network for programs that know net.PacketConn, such as QUIC or DTLS: addresses are
// [Addr], and packets are messages. Unlike UDP's they arrive, or WriteTo says that they did not; a packet is up to
// [MaxMessage] long. What Recv of the peer would return is read here: use one or the other.
type PacketConn struct {
	peer        *Peer
	read, write *deadline
	ctx         context.Context // ends with net.ErrClosed when it is closed
	end         context.CancelCauseFunc
}

// PacketConn returns the peer as a net.PacketConn. Closing it leaves the peer as it is.
func (p *Peer) PacketConn() *PacketConn {
	ctx, end := context.WithCancelCause(context.Background())
	return &PacketConn{peer: p, read: newDeadline(), write: newDeadline(), ctx: ctx, end: end}
}

// ReadFrom reads one message, and drops what does not fit into b, as UDP does. Broadcasts are read as well.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	if c.ctx.Err() != nil {
		return 0, nil, c.error("read", nil, net.ErrClosed)
	}
	m, err := c.peer.inbox.take(c.ctx, c.read.wait())
	if err != nil {
		return 0, nil, c.error("read", nil, err)
	}
	return copy(b, m.Data), Addr{m.From.ID}, nil
}

// WriteTo sends a message to a member, named by an [Addr] or any other address whose String is an ID, and waits until
// it is acknowledged.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if c.ctx.Err() != nil {
		return 0, c.error("write", addr, net.ErrClosed)
	}
	a, ok := addr.(Addr)
	if addr == nil {
		return 0, c.error("write", nil, errNoAddress)
	}
	if !ok {
		id, err := member.ParseID(addr.String())
		if err != nil {
			return 0, c.error("write", addr, err)
		}
		a = Addr{id}
	}
	ctx, cancel := c.write.context(c.ctx)
	defer cancel()
	if err := c.peer.Send(ctx, ToID(a.ID), b); err != nil {
		return 0, c.error("write", addr, err)
	}
	return len(b), nil
}

// Close ends the calls that wait: they return net.ErrClosed, as all later ones. It does not close the peer.
func (c *PacketConn) Close() error {
	c.end(net.ErrClosed)
	return nil
}

// LocalAddr returns the peer's [Addr].
func (c *PacketConn) LocalAddr() net.Addr { return Addr{c.peer.ID()} }

// SetDeadline sets both deadlines.
func (c *PacketConn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// SetReadDeadline sets the time after which ReadFrom fails with os.ErrDeadlineExceeded. The zero time is never.
func (c *PacketConn) SetReadDeadline(t time.Time) error { c.read.set(t); return nil }

// SetWriteDeadline sets the time after which WriteTo fails with os.ErrDeadlineExceeded. The zero time is never.
func (c *PacketConn) SetWriteDeadline(t time.Time) error { c.write.set(t); return nil }

var errNoAddress = errors.New("no address to send to")

func (c *PacketConn) error(op string, to net.Addr, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = os.ErrDeadlineExceeded // net.OpError looks no deeper for a timeout
	}
	return &net.OpError{Op: op, Net: "swarm", Source: c.LocalAddr(), Addr: to, Err: err}
}
