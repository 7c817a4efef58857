// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A Stream is one of the streams of a link: a connection like TCP's, down to closing in one direction.
type Stream struct {
	s   *Session
	id  uint64
	own bool // opened by this side

	accepted chan struct{} // closed when the other side has accepted or refused; nil if it is the one that opened
	closed   chan struct{} // closed when the stream or the link has failed or was closed on this side

	readDeadline, writeDeadline deadline

	reading sync.Mutex // held by the Read under way
	writing sync.Mutex // held by the Write under way

	// Guarded by the session's mu.
	answered  bool     // accepted or refused, either way
	credit    int      // what may still be written
	writers   waitList // who waits for credit; one at most
	ended     bool     // this side writes no more
	peerEnded bool     // the other side writes no more
	writeErr  error    // why nothing can be written any more
	removed   bool     // not in the table any more

	// mu guards all that follows. It is not held together with the session's.
	mu       sync.Mutex
	unread   []*block
	offset   int   // in the first of unread
	bytes    int   // in unread
	readErr  error // what Read returns after what is unread
	isClosed bool  // on this side: nothing is read any more
	window   window
	readable chan struct{} // capacity 1
}

var _ net.Conn = (*Stream)(nil)

func (s *Session) newStream(own bool) *Stream {
	return &Stream{
		s: s, own: own, credit: startWindow,
		closed: make(chan struct{}), readable: make(chan struct{}, 1),
		readDeadline: newDeadline(), writeDeadline: newDeadline(),
		window: newWindow(startWindow, s.config.MaxWindow, &s.extra),
	}
}

// Open opens a stream, with a header of at most MaxHeader bytes that says what for, and waits until the other side has
// accepted it. The error wraps [ErrRefused] when it has not, and is [ErrTooManyStreams] when there are as many as it allows.
func (s *Session) Open(ctx context.Context, header []byte) (*Stream, error) {
	if len(header) > MaxHeader {
		return nil, fmt.Errorf("%w: a header of %d bytes, at most %d", ErrTooLarge, len(header), MaxHeader)
	}
	s.mu.Lock()
	if err := s.wait(&s.streams.waiters, s.streamRoom, ctx.Done(), nil); err != nil {
		s.mu.Unlock()
		return nil, canceled(ctx, err)
	}
	if s.ownStreams >= int(s.peer.limits.streams) {
		s.streams.waiters.wake()
		s.mu.Unlock()
		return nil, ErrTooManyStreams
	}
	st := s.newStream(true)
	st.accepted = make(chan struct{})
	s.ownStreams++
	st.id = s.newID(entry{stream: st})
	s.streams.add(&frame{kind: kindOpen, id: st.id, code: forApplication, body: header})
	s.kick()
	s.streams.waiters.wake()
	s.mu.Unlock()
	select {
	case <-st.accepted:
	case <-st.closed:
	case <-ctx.Done():
		st.abort("")
		return nil, context.Cause(ctx)
	}
	if err := st.failed(); err != nil {
		return nil, err
	}
	s.counters.streamsOpened.Add(1)
	return st, nil
}

func (st *Stream) failed() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if closed(st.closed) {
		return st.readErr
	}
	return nil
}

// openedByPeer is called with the session locked.
func (s *Session) openedByPeer(f *frame) error {
	if len(f.body) > MaxHeader {
		return fmt.Errorf("%w: a header of %d bytes", ErrProtocol, len(f.body))
	}
	if s.peerStreams++; s.peerStreams > s.config.MaxStreams {
		return fmt.Errorf("%w: more streams than agreed on", ErrProtocol)
	}
	st := s.newStream(false)
	st.id = f.id
	s.setEntry(f.id, entry{stream: st})
	if s.opening >= s.config.MaxStreams {
		// Those of streams that the other side has given up meanwhile: their number is bounded nowhere else.
		s.refuse(st, "too many streams are being opened")
		return nil
	}
	s.opening++
	header := append([]byte(nil), f.body...)
	s.wg.Go(func() {
		err := s.config.Handler.Stream(s, header, st)
		s.mu.Lock()
		s.opening--
		s.mu.Unlock()
		if err != nil {
			st.abort(err.Error())
			return
		}
		s.counters.streamsAccepted.Add(1)
		s.mu.Lock()
		if !st.answered && !st.removed {
			st.answered = true
			s.control(&frame{kind: kindAccept, id: st.id})
		}
		s.mu.Unlock()
	})
	return nil
}

// acceptedByPeer is called with the session locked.
func (st *Stream) acceptedByPeer() error {
	if !st.own {
		return fmt.Errorf("%w: stream %d accepted by who opened it", ErrProtocol, st.id)
	}
	if !st.answered {
		st.answered = true
		close(st.accepted)
	}
	return nil
}

// receive takes in data.
func (st *Stream) receive(data []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.isClosed {
		return nil
	}
	if st.readErr != nil {
		return fmt.Errorf("%w: data after the end of stream %d", ErrProtocol, st.id)
	}
	if !st.window.receive(len(data)) {
		return fmt.Errorf("%w: data beyond the window of stream %d", ErrProtocol, st.id)
	}
	st.bytes += len(data)
	for len(data) > 0 {
		var last *block
		if n := len(st.unread); n > 0 {
			last = st.unread[n-1]
		}
		if last == nil || last.n == len(last.data) {
			last = newBlock()
			st.unread = append(st.unread, last)
		}
		n := copy(last.data[last.n:], data)
		last.n += n
		data = data[n:]
	}
	st.notify()
	return nil
}

func (st *Stream) notify() {
	select {
	case st.readable <- struct{}{}:
	default:
	}
}

// Read reads what the other side has written; io.EOF when it has closed the stream or its writing half.
func (st *Stream) Read(p []byte) (int, error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	for {
		expired := st.readDeadline.wait()
		if closed(expired) {
			return 0, st.opError("read", os.ErrDeadlineExceeded)
		}
		n, credit, err := st.readSome(p)
		if credit > 0 {
			st.s.mu.Lock()
			if !st.removed && !st.peerEnded {
				st.s.control(&frame{kind: kindCredit, id: st.id, number: uint64(credit)})
			}
			st.s.mu.Unlock()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-st.readable:
		case <-st.closed:
		case <-expired:
		}
	}
}

// readSome reads what there is, and returns what credit to give for it.
func (st *Stream) readSome(p []byte) (n, credit int, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.isClosed {
		return 0, 0, st.opErrorUnlessEOF("read", st.readErr)
	}
	for n < len(p) && st.bytes > 0 {
		b := st.unread[0]
		m := copy(p[n:], b.data[st.offset:b.n])
		n += m
		st.offset += m
		st.bytes -= m
		if st.offset == b.n {
			blocks.Put(b)
			rest := copy(st.unread, st.unread[1:])
			st.unread[rest] = nil
			st.unread, st.offset = st.unread[:rest], 0
		}
	}
	if n > 0 {
		return n, st.window.consume(n, st.s.RTT()), nil
	}
	return 0, 0, st.opErrorUnlessEOF("read", st.readErr)
}

// Write writes p: it waits until all of it is queued, which takes as long as the other side does not read and the window
// and the queue are full.
func (st *Stream) Write(p []byte) (n int, err error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	for {
		m, err := st.writeSome(p[n:])
		if n += m; err != nil || n == len(p) {
			return n, st.opErrorUnlessEOF("write", err)
		}
	}
}

func (st *Stream) writeSome(p []byte) (int, error) {
	s := st.s
	expired := st.writeDeadline.wait()
	if closed(expired) {
		return 0, os.ErrDeadlineExceeded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	over := func() bool { return st.writeErr != nil || st.ended }
	err := s.wait(&st.writers, func() bool { return st.credit > 0 || len(p) == 0 || over() }, st.closed, expired)
	if err == nil && !over() && len(p) > 0 {
		err = s.wait(&s.streams.waiters, s.streamRoom, st.closed, expired)
	}
	if st.writeErr != nil {
		return 0, st.writeErr
	}
	if err == errCanceled || st.ended {
		err = net.ErrClosed
	}
	if err != nil || len(p) == 0 {
		return 0, err
	}
	n := min(len(p), st.credit, maxSmall)
	st.credit -= n
	st.answered = true // data says that a stream is accepted
	s.streams.add(&frame{kind: kindData, id: st.id, body: p[:n]})
	s.kick()
	s.streams.waiters.wake()
	return n, nil
}

// CloseWrite says that nothing more will be written. The other side reads io.EOF after what was written before.
func (st *Stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	switch {
	case st.writeErr != nil:
		return st.opErrorUnlessEOF("close", st.writeErr)
	case st.ended:
		return nil
	}
	st.ended = true
	st.answered = true
	st.s.tell(&frame{kind: kindEnd, id: st.id, code: endWriting})
	st.writers.wake()
	if st.peerEnded {
		st.remove()
	}
	return nil
}

// Close closes both directions. What was written before still arrives, while the link lasts; the other side cannot write
// any more. Reading and writing return an error that wraps net.ErrClosed.
func (st *Stream) Close() error {
	s := st.s
	s.mu.Lock()
	if !st.removed {
		s.tell(&frame{kind: kindEnd, id: st.id, code: endClosed})
		st.remove()
	}
	s.mu.Unlock()
	st.fail(net.ErrClosed, false)
	return nil
}

// abort ends the stream as if it had never been, and tells why.
func (st *Stream) abort(reason string) {
	s := st.s
	s.mu.Lock()
	s.refuse(st, reason)
	s.mu.Unlock()
	st.fail(net.ErrClosed, false)
}

// refuse is abort for a stream that nobody has seen. It is called with mu locked.
func (s *Session) refuse(st *Stream, reason string) {
	if !st.removed {
		s.tell(&frame{kind: kindEnd, id: st.id, code: endAborted, body: reasonBytes(reason)})
		st.remove()
	}
}

// tell queues the end of a stream behind its data. It is called with mu locked, and does not wait. Those of the streams
// that are open are few; more come about only when the other side opens and does not listen.
func (s *Session) tell(f *frame) {
	if s.err != nil {
		return
	}
	s.streams.add(f)
	s.notListening(&s.streams)
	s.kick()
}

// remove takes the stream from the table. It is called with the session locked, when neither side has anything to say
// about it any more.
func (st *Stream) remove() {
	if st.removed {
		return
	}
	st.removed = true
	delete(st.s.table, st.id)
	if st.own {
		st.s.ownStreams--
	} else {
		st.s.peerStreams--
	}
}

// fail makes reading and writing return err from now on. With keep, what has come is read first, and errors that were
// there before stay.
func (st *Stream) fail(err error, keep bool) {
	st.s.mu.Lock()
	if st.writeErr == nil {
		st.writeErr = err
	}
	st.writers.wake()
	st.s.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if !closed(st.closed) {
		close(st.closed)
	}
	if keep {
		if st.readErr == nil {
			st.readErr = err
		}
		return
	}
	if st.isClosed {
		return
	}
	st.isClosed, st.readErr = true, err
	for _, b := range st.unread {
		blocks.Put(b)
	}
	st.unread, st.bytes = nil, 0
	st.window.end(startWindow)
}

// errStopped is what writing to a stream returns that the other side has closed.
var errStopped = fmt.Errorf("the other side has closed the stream: %w", io.ErrClosedPipe)

func (st *Stream) endedByPeer(f *frame) error {
	if f.code == endAborted {
		st.s.mu.Lock()
		st.remove()
		st.s.mu.Unlock()
		st.fail(refusal(f.body), false)
		return nil
	}
	st.s.mu.Lock()
	again := st.peerEnded
	st.peerEnded = true
	if st.own {
		_ = st.acceptedByPeer() // it cannot fail for an own one
	}
	if f.code == endClosed {
		if st.writeErr == nil {
			st.writeErr = errStopped
		}
		st.writers.wake()
	}
	if f.code == endClosed || st.ended {
		st.remove()
	}
	st.s.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if again && f.code == endWriting {
		return fmt.Errorf("%w: stream %d ended twice", ErrProtocol, st.id)
	}
	if st.readErr == nil {
		st.readErr = io.EOF
		st.notify()
	}
	return nil
}

// opError makes an error what callers of a net.Conn expect.
func (st *Stream) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "fathom", Source: st.LocalAddr(), Addr: st.RemoteAddr(), Err: err}
}

func (st *Stream) opErrorUnlessEOF(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return st.opError(op, err)
}

// Session returns the link that the stream is one of.
func (st *Stream) Session() *Session { return st.s }

// LocalAddr returns the address of the link's own end.
func (st *Stream) LocalAddr() net.Addr { return st.s.LocalAddr() }

// RemoteAddr returns the address of the link's other end.
func (st *Stream) RemoteAddr() net.Addr { return st.s.RemoteAddr() }

// SetDeadline sets both deadlines.
func (st *Stream) SetDeadline(t time.Time) error {
	st.readDeadline.set(t)
	st.writeDeadline.set(t)
	return nil
}

// SetReadDeadline sets when reading gives up; zero means never.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.readDeadline.set(t)
	return nil
}

// SetWriteDeadline sets when writing gives up; zero means never.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.writeDeadline.set(t)
	return nil
}
