// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"crypto/ed25519"
	"net"
	"time"
)

const startWindow = 64 << 10

// A Session is one end of a link that is up. Its methods may be called from any goroutine.
type Session struct{}

// Stream is one stream of a link.
type Stream struct{ net.Conn }

// CloseWrite says that nothing more will be written. The other side reads io.EOF after what was written before.
func (st *Stream) CloseWrite() error { panic("under way") }

// Client begins a link on conn, which the caller has dialled. With expect it succeeds only with that member; nil takes
// whoever answers. The session owns conn, which is closed when Client fails; ctx bounds only Client itself.
func Client(ctx context.Context, conn net.Conn, c Config, expect ed25519.PublicKey) (*Session, error) {
	panic("under way")
}

// Server begins a link on conn, which the caller has accepted.
func Server(ctx context.Context, conn net.Conn, c Config) (*Session, error) { panic("under way") }

// Key returns the other side's public key, proved in the handshake.
func (s *Session) Key() ed25519.PublicKey { panic("under way") }

// Hello returns what the other side said about itself.
func (s *Session) Hello() []byte { panic("under way") }

// RemoteAddr returns the address of the connection's other end.
func (s *Session) RemoteAddr() net.Addr { panic("under way") }

// Call sends a request and waits for the answer.
func (s *Session) Call(ctx context.Context, body []byte) ([]byte, error) { panic("under way") }

// Cast sends what is not answered. It never blocks, and drops when the queue is full.
func (s *Session) Cast(body []byte) { panic("under way") }

// Send hands over a message and waits until the other side has acknowledged it.
func (s *Session) Send(ctx context.Context, payload []byte) error { panic("under way") }

// Post queues a message, waiting while the queue is full, and calls done when it is acknowledged or lost. done is not
// called when Post returns an error. It must not block.
func (s *Session) Post(ctx context.Context, payload []byte, done func(error)) error {
	panic("under way")
}

// Open opens a stream and waits until the other side has accepted it.
func (s *Session) Open(ctx context.Context, header []byte) (*Stream, error) { panic("under way") }

// Ping measures the round trip.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) { panic("under way") }

// RTT returns the smoothed round trip. The handshake gives the first.
func (s *Session) RTT() time.Duration { panic("under way") }

// Done is closed when the link has ended.
func (s *Session) Done() <-chan struct{} { panic("under way") }

// Err returns why the link ended, and nil while it has not. After Close or Bye it wraps net.ErrClosed.
func (s *Session) Err() error { panic("under way") }

// Bye ends the link: it sends what is queued, and a goodbye with the reason. It does not wait.
func (s *Session) Bye(code Code, reason string) { panic("under way") }

// Close ends the link with CodeClosed and waits for its goroutines, those that run the Handler included. It may be called any number of times.
func (s *Session) Close() error { panic("under way") }

// Stats are counters of one session.
type Stats struct {
	RecordsSent, RecordsReceived   uint64
	BytesSent, BytesReceived       uint64 // on the wire, after the handshake
	MessagesSent, MessagesReceived uint64
	RequestsSent, RequestsReceived uint64
	CastsSent, CastsReceived       uint64
	CastsDropped                   uint64 // by this side, on their way out or in
	StreamsOpened, StreamsAccepted uint64
	Rekeys                         uint64 // of both directions
}

// Stats returns the counters.
func (s *Session) Stats() Stats { panic("under way") }
