// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// Bounds of what waits for the writer. Who wants to add more has to wait.
	urgentQueue   = 256 << 10
	messagesQueue = 256 << 10
	streamsQueue  = 256 << 10
	// maxUrgent is for what nobody can wait with: answers to what the other side does. Who makes us say so much and
	// does not listen is up to no good.
	maxUrgent = 4 << 20

	// byeTime bounds how long the end of a link waits for what is queued.
	byeTime = time.Second
)

// errClosed is what ends a link on this side's own wish.
var errClosed = fmt.Errorf("the link is closed: %w", net.ErrClosed)

// A Session is one end of a link that is up. Its methods may be called from any goroutine.
type Session struct {
	// Set before the session is handed out, then constant.
	conn   net.Conn
	config Config
	dialer bool
	peer   announced
	done   chan struct{} // closed when err is set
	wg     sync.WaitGroup

	counters counters
	rtt      atomic.Int64 // nanoseconds, smoothed
	heard    atomic.Int64 // when a record came in last, nanoseconds since began
	began    time.Time
	extra    atomic.Int64 // how much the windows of streams may still grow

	send struct { // belongs to the writer
		direction
		bytes   uint64 // since the last rekey
		rekeyed time.Time
		patient time.Time // when the deadline was set
		batch   []*block
	}
	recv direction // belongs to the reader, as does what follows
	acks []ack     // taken from pending

	in inbox

	// mu guards all that follows.
	mu      sync.Mutex
	err     error // why the link ended
	closing error // why it is about to: the writer sends the goodbye, and that is that
	goodbye frame
	said    atomic.Bool // the goodbye is on its way: what comes now does not count
	writing bool        // there is a writer

	urgent, messages, streams queue

	idle  *waiter // to be used again
	idles int

	// Requests of this side, and what is under way of the other's.
	calls    map[uint64]*call
	nextCall uint64
	callers  waitList
	repliers waitList
	serving  int
	casts    int

	// Messages to the other side.
	credit  int
	pending ring // not acknowledged, in the order they were sent

	// Messages from the other side: what the writer has to say about them next.
	taken    uint64 // delivered, and not acknowledged
	returned int    // credit

	// Streams and large bodies, of both sides, by ID.
	table       map[uint64]entry
	nextOwn     uint64
	nextPeer    uint64
	budgets     [purposes]*semaphore.Weighted // for large bodies to the other side; made when needed
	ownStreams  int
	peerStreams int
	opening     int           // calls of Handler.Stream under way
	held        [purposes]int // bytes of the other side's large bodies

	timer  *time.Timer
	asked  time.Time // when it was asked whether the other side is there, and no answer since
	pings  map[uint64]*ping
	token  uint64
	ending *time.Timer
}

// Client begins a link on conn, which the caller has dialled. With expect it succeeds only with that member, and nil
// takes whoever answers. It returns when the other side has accepted the link. The session owns conn, which is closed
// when Client fails; ctx bounds only Client itself. The Handler may be called before Client returns.
func Client(ctx context.Context, conn net.Conn, c Config, expect ed25519.PublicKey) (*Session, error) {
	return begin(ctx, conn, c, true, expect)
}

// Server begins a link on conn, which the caller has accepted; the magic byte is still to be read. The session owns conn,
// which is closed when Server fails; ctx bounds only Server itself. The Handler may be called before Server returns.
//
// Until the other side has proved its key, Server needs some 16 KiB of memory and Config.Handshake of time at most. How many
// such links are begun at a time is for the caller to bound, for each remote address and for all.
func Server(ctx context.Context, conn net.Conn, c Config) (*Session, error) {
	return begin(ctx, conn, c, false, nil)
}

func begin(ctx context.Context, conn net.Conn, c Config, dialer bool, expect ed25519.PublicKey) (_ *Session, err error) {
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("link with %v: %w", conn.RemoteAddr(), err)
		}
	}()
	if c, err = c.withDefaults(); err != nil {
		return nil, err
	}
	stop := c.start(ctx, conn)
	s, err := shakeHands(conn, c, dialer, expect)
	if late := stop(); late != nil {
		return nil, late
	}
	if err != nil {
		return nil, err
	}
	s.startTimer()
	s.wg.Add(1)
	go s.read()
	return s, nil
}

func shakeHands(conn net.Conn, c Config, dialer bool, expect ed25519.PublicKey) (*Session, error) {
	h := &shake{conn: conn, config: c, dialer: dialer}
	if dialer {
		send, recv, err := h.dial(expect)
		if err != nil {
			return nil, err
		}
		s := newSession(h, send.UnsafeKey(), recv.UnsafeKey())
		return s, s.awaitWelcome()
	}
	send, recv, err := h.accept()
	if err != nil {
		return nil, err
	}
	s := newSession(h, send.UnsafeKey(), recv.UnsafeKey())
	answer := frame{kind: kindWelcome}
	refusal := h.check()
	if refusal != nil {
		answer = frame{kind: kindGoodbye, code: uint8(CodeRefused), body: reasonBytes(refusal.Error())}
		if g, ok := errors.AsType[*Goodbye](refusal); ok {
			answer.code, answer.body = uint8(g.Code), reasonBytes(g.Reason)
		}
	}
	if _, err := conn.Write(s.send.seal(nil, appendFrame(nil, &answer))); err != nil && refusal == nil {
		return nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	return s, refusal
}

// awaitWelcome waits for the verdict of the side that was dialled.
func (s *Session) awaitWelcome() error {
	b := make([]byte, lengthSize, lengthSize+tagSize+frameOverhead+maxReason)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	n, err := recordLength(b)
	if err != nil {
		return err
	}
	if n > cap(b) {
		return fmt.Errorf("%w: a first record of %d bytes", ErrHandshake, n)
	}
	b = b[:n]
	if _, err := io.ReadFull(s.conn, b[lengthSize:]); err != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	text, err := s.recv.open(b)
	if err != nil {
		return err
	}
	var f frame
	rest, err := decodeFrame(&f, text)
	switch {
	case err != nil:
		return err
	case f.kind == kindGoodbye:
		return goodbyeOf(&f)
	case f.kind != kindWelcome || len(rest) > 0:
		return fmt.Errorf("%w: %s for a welcome", ErrProtocol, f.kind)
	}
	return nil
}

func goodbyeOf(f *frame) *Goodbye {
	return &Goodbye{Code: Code(f.code), Reason: string(f.body[:min(len(f.body), maxReason)])}
}

func newSession(h *shake, send, recv [32]byte) *Session {
	s := &Session{
		conn: h.conn, config: h.config, dialer: h.dialer, peer: h.peer,
		done: make(chan struct{}), began: time.Now(), recv: newDirection(recv), credit: startMessagesWindow,
	}
	s.peer.signature = nil
	s.send.direction, s.send.rekeyed = newDirection(send), s.began
	s.in.window = newWindow(startMessagesWindow, max(s.config.MaxWindow, startMessagesWindow), nil)
	s.extra.Store(4 * int64(s.config.MaxWindow))
	s.rtt.Store(int64(max(h.rtt, 1)))
	// Stream IDs of the side that dialled are odd.
	s.nextOwn, s.nextPeer = 2, 1
	if s.dialer {
		s.nextOwn, s.nextPeer = 1, 2
	}
	return s
}

// Key returns the other side's public key, proved in the handshake.
func (s *Session) Key() ed25519.PublicKey { return s.peer.key }

// Hello returns what the other side said about itself. It must not be changed.
func (s *Session) Hello() []byte { return s.peer.hello }

// Dialer tells whether this side began the link.
func (s *Session) Dialer() bool { return s.dialer }

// LocalAddr returns the address of the connection's own end.
func (s *Session) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr returns the address of the connection's other end.
func (s *Session) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Done is closed when the link has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the link ended, and nil while it has not: something that wraps net.ErrClosed after Close or Bye, a
// *[Goodbye] when the other side ended it, or an error that wraps [ErrBroken], [ErrTimeout] or [ErrProtocol].
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the link with [CodeClosed]: it sends what is queued and a goodbye, for at most a second, and waits for the
// link's goroutines, those that run the Handler included. It may be called any number of times, and returns nil.
func (s *Session) Close() error {
	s.Bye(CodeClosed, "")
	s.wg.Wait()
	return nil
}

// Bye is Close with a reason, without waiting. [Session.Done] tells when it is over.
func (s *Session) Bye(code Code, reason string) { s.leave(errClosed, code, reason, true) }

// leave says goodbye and ends the link, after what is queued or at once.
func (s *Session) leave(err error, code Code, reason string, drain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.closing != nil {
		return
	}
	s.closing = err
	s.goodbye = frame{kind: kindGoodbye, code: uint8(code), body: reasonBytes(reason)}
	if !drain {
		for _, q := range []*queue{&s.urgent, &s.messages, &s.streams} {
			q.blocks, q.bytes = nil, 0
		}
	}
	s.ending = time.AfterFunc(byeTime, func() { s.end(err) })
	// Nobody gets any further; each tells the next one.
	for _, l := range []*waitList{&s.callers, &s.repliers, &s.messages.waiters, &s.streams.waiters} {
		l.wake()
	}
	s.kick()
}

// end ends the link for good.
func (s *Session) end(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if s.closing != nil {
		err = s.closing // what breaks while we leave does not matter
	}
	s.err = err
	close(s.done)
	table := maps.Clone(s.table) // the reader ends the rest
	for _, t := range []*time.Timer{s.timer, s.ending} {
		if t != nil {
			t.Stop()
		}
	}
	s.mu.Unlock()
	s.conn.Close()
	for _, e := range table {
		if e.stream != nil {
			e.stream.fail(err, true)
		}
	}
	if !errors.Is(err, net.ErrClosed) {
		s.config.Logger.LogAttrs(context.Background(), slog.LevelDebug, "link ended",
			slog.Any("remote", s.conn.RemoteAddr()), slog.Any("error", err))
	}
	if s.config.Closed != nil {
		s.config.Closed(s)
	}
}

// over returns why nothing new can be begun, or nil.
func (s *Session) over() error {
	if s.err != nil {
		return s.err
	}
	return s.closing
}

// wait waits in a list until can says that it can go on. It is called with mu locked, which it gives up meanwhile.
// cancel and expired end it; it then returns errCanceled or os.ErrDeadlineExceeded.
func (s *Session) wait(l *waitList, can func() bool, cancel, expired <-chan struct{}) (err error) {
	if err := s.over(); err != nil {
		return err
	}
	if l.first == nil && can() {
		return nil
	}
	w := s.newWaiter()
	l.push(w)
	for {
		s.mu.Unlock()
		select {
		case <-w.ready:
		case <-s.done:
		case <-cancel:
			err = errCanceled
		case <-expired:
			err = os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		if err == nil {
			err = s.over()
		}
		if err != nil || l.first == w && can() {
			l.remove(w)
			s.free(w)
			l.wake() // there may be room for the next one too
			return err
		}
	}
}

var errCanceled = errors.New("canceled")

// canceled makes errCanceled the error of a context.
func canceled(ctx context.Context, err error) error {
	if errors.Is(err, errCanceled) {
		return context.Cause(ctx)
	}
	return err
}

// control queues a frame that the protocol demands. It is called with mu locked.
func (s *Session) control(f *frame) {
	if s.err != nil {
		return
	}
	s.urgent.add(f)
	s.notListening(&s.urgent)
	s.kick()
}

// notListening ends the link when too much has piled up in a queue. It is called with mu locked.
func (s *Session) notListening(q *queue) {
	if q.bytes > maxUrgent && s.closing == nil {
		s.closing = fmt.Errorf("%w: it asks and does not listen", ErrProtocol)
		s.wg.Go(func() { s.end(nil) }) // a goodbye would not be heard either
	}
}
