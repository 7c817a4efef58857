// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/wire"
)

// What an original can bear: it reads 64 bytes of each connection about eight times a second (540 to 580 B/s measured),
// and answers when it comes to it.
const (
	pace           = 350              // bytes a second towards an original, on average
	paceBurst      = 700              // bytes that may be ahead of the pace
	requestTimeout = 8 * time.Second  // shorter ones misfire
	joinTimeout    = 12 * time.Second // an original looks the joiner's place up first
	readPace       = 250              // bytes a second that an original is sure to read
)

// Bounds on what the other end of a connection can make us keep.
const (
	maxPending   = 64               // requests of ours that wait for an answer
	maxHandlers  = 16               // requests of theirs under way that take time
	maxStrays    = 32               // answers to nothing, before the connection is closed
	maxQueued    = 128              // messages that wait to be written
	chunk        = 64 << 10         // how much room is made at once for what a length promises
	firstTimeout = 30 * time.Second // until the first message
	chunkTimeout = 60 * time.Second // for each chunk of a message that has begun
	writeTimeout = 60 * time.Second // for a message, and what its length needs at readPace
)

// Times of connections that are given up.
const (
	retiredLife = 2 * time.Minute
	drainEvery  = 50 * time.Millisecond
	closeDrain  = 3 * time.Second  // how long Close waits for answers
	acceptLife  = 10 * time.Second // until an original has certainly accepted a connection: it takes five a second
)

// mark is the features byte of all that a gateway sends. Originals ignore it and send zero; a native member that accepts
// a connection with it knows that another native is asking.
const mark = 'F'

// hello is what a native member answers to a first message with the mark: that it is one. The connection goes on as a
// link between natives, as if it had just been opened.
const hello = "fathom\x00\x01"

// An outgoing message, until it is written.
type outgoing struct {
	kind Type
	data []byte
	as   *Ref // who sends it, where that is not ourselves

	// Of a response.
	answers  *incoming
	fallback []byte // data to send instead, when data may not be sent any more

	// Of a request.
	call *call
}

// A call is a request of ours that waits for its answer.
type call struct {
	kind    Type
	size    int           // of its data
	written chan struct{} // closed when it is written
	done    chan struct{} // closed when answer or err is there
	sent    time.Time
	answer  Message
	err     error
	given   bool // nobody waits any more; its late answer is no stray
}

// incoming is a request of theirs that we have not answered.
type incoming struct {
	kind     Type
	sequence uint32
	checksum [16]byte
}

// A conn is a connection with an original, whoever opened it.
type conn struct {
	g       *Gateway
	nc      net.Conn
	remote  netip.AddrPort
	dialled bool
	wake    chan struct{} // something to write
	proved  chan struct{} // closed by the first message that comes in
	over    chan struct{} // closed with the connection
	ended   chan struct{} // closed when run returns
	once    sync.Once

	// The gateway's mutex guards the rest.
	peer      *peer // nil until the first message
	first     *call // the first request, as long as nobody has taken its answer
	sequence  uint32
	pending   map[uint32]*call
	asked     map[uint32]*incoming
	responses []*outgoing
	requests  []*outgoing
	tokens    float64 // bytes that may be written now
	counted   time.Time
	strays    int
	opened    time.Time
	retired   bool      // nobody uses it any more
	interest  time.Time // the other end asked for our neighbours, as originals do their peers, and got them; or took us for a peer
	native    bool
	err       error
}

func newConn(g *Gateway, nc net.Conn, dialled bool) *conn {
	c := &conn{
		g: g, nc: nc, dialled: dialled,
		wake: make(chan struct{}, 1), proved: make(chan struct{}), over: make(chan struct{}), ended: make(chan struct{}),
		sequence: 1 + rand.Uint32N(1<<31), pending: map[uint32]*call{}, asked: map[uint32]*incoming{},
		tokens: paceBurst, counted: time.Now(), opened: time.Now(),
	}
	if a, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		c.remote = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	return c
}

// fail ends the connection. Everybody who waits for an answer learns why.
func (c *conn) fail(err error) {
	c.once.Do(func() {
		c.g.mu.Lock()
		c.err = err
		for _, o := range c.requests {
			o.call.finish(Message{}, err)
		}
		for _, q := range c.pending {
			q.finish(Message{}, err)
		}
		c.pending, c.requests, c.responses = nil, nil, nil
		native := c.native
		c.g.mu.Unlock()
		close(c.over)
		if !native {
			reset(c.nc)
		}
	})
}

// retire gives a connection up that we opened. It stays open for a while as long as an original would not survive that it
// is closed; see busyLocked.
func (c *conn) retire(err error) {
	c.g.mu.Lock()
	if p := c.peer; p != nil {
		p.conns = slices.DeleteFunc(p.conns, func(o *conn) bool { return o == c })
		c.peer = nil
	}
	c.retired = true
	busy := c.busyLocked()
	c.g.mu.Unlock()
	if !busy {
		c.fail(err)
		return
	}
	c.g.background(func(ctx context.Context) {
		c.drain(ctx, retiredLife)
		c.fail(err)
	})
}

// busyLocked reports whether closing the connection could end a thread of an original: the one that accepts, when it
// comes to a connection that has been reset before; and the one that reads, when it has the answer of another to pass
// back to a connection that is gone.
func (c *conn) busyLocked() bool {
	if c.dialled && time.Since(c.opened) < acceptLife && !c.isProved() {
		return true
	}
	for _, q := range c.pending {
		if q.kind == Join || q.kind == Lookup {
			return true
		}
	}
	return false
}

// drain waits until the connection can be closed without harm, up to some time.
func (c *conn) drain(ctx context.Context, limit time.Duration) {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		c.g.mu.Lock()
		busy := c.err == nil && c.busyLocked()
		c.g.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// reset closes a connection so that an original notices: it does not notice an orderly close.
func reset(nc net.Conn) {
	if t, ok := nc.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = nc.Close()
}

func (q *call) finish(m Message, err error) {
	select {
	case <-q.done:
	default:
		q.answer, q.err = m, err
		close(q.done)
	}
}

// run serves the connection until it ends, once, and returns why. first is the message that has been read of it already, if any.
func (c *conn) run(ctx context.Context, first *Message) error {
	var owned sync.WaitGroup
	owned.Go(c.write)
	stop := context.AfterFunc(ctx, func() { c.fail(net.ErrClosed) })
	err := c.read(ctx, &owned, first)
	c.fail(err)
	stop()
	owned.Wait()
	c.g.forget(c)
	close(c.ended)
	return c.g.malformed(c.err)
}

// request sends a request and waits for its answer, for as long as an original may take from the moment that it is
// written, or until ctx ends.
func (c *conn) request(ctx context.Context, kind Type, data []byte, as *Ref) (Message, error) {
	q, err := c.begin(kind, data, as)
	if err != nil {
		return Message{}, err
	}
	return c.wait(ctx, q)
}

// begin sends a request.
func (c *conn) begin(kind Type, data []byte, as *Ref) (*call, error) {
	q := &call{kind: kind, size: len(data), written: make(chan struct{}), done: make(chan struct{})}
	return q, c.enqueue(&outgoing{kind: kind, data: data, as: as, call: q})
}

// wait waits for the answer to a request. Nobody else does.
func (c *conn) wait(ctx context.Context, q *call) (Message, error) {
	patience := requestTimeout
	if q.kind == Join {
		patience = joinTimeout
	}
	patience += time.Duration(q.size) * time.Second / readPace
	written := q.written
	var expired <-chan time.Time
	for {
		select {
		case <-q.done:
			return q.answer, q.err
		case <-written:
			timer := time.NewTimer(patience)
			defer timer.Stop()
			written, expired = nil, timer.C
		case <-expired:
			c.give(q)
			return Message{}, fmt.Errorf("%s to %s: %w: no answer in %v", q.kind, c.remote, wire.ErrUnreachable, patience)
		case <-ctx.Done():
			c.give(q)
			return Message{}, fmt.Errorf("%s to %s: %w", q.kind, c.remote, context.Cause(ctx))
		}
	}
}

// give stops waiting for a request: it is not written any more, or its answer is expected but wanted by nobody.
func (c *conn) give(q *call) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	q.given = true
	c.requests = slices.DeleteFunc(c.requests, func(o *outgoing) bool { return o.call == q })
}

// respond answers a request of theirs. fallback, which may be nil, is sent if data cannot be when its turn comes.
func (c *conn) respond(to *incoming, data, fallback []byte) {
	_ = c.enqueue(&outgoing{kind: to.kind, data: data, fallback: fallback, answers: to})
}

func (c *conn) enqueue(o *outgoing) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case len(c.requests)+len(c.responses) >= maxQueued, o.call != nil && len(c.pending) >= maxPending:
		return fmt.Errorf("%s to %s: %w: too much waits for it", o.kind, c.remote, wire.ErrUnreachable)
	case o.answers != nil:
		c.responses = append(c.responses, o)
	default:
		c.requests = append(c.requests, o)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// next returns what to write now, or how long to wait before there may be something: answers first and at once, as an
// original waits two seconds at most for some; requests at the pace.
func (c *conn) next() (*outgoing, time.Duration) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	now := time.Now()
	c.tokens = min(paceBurst, c.tokens+now.Sub(c.counted).Seconds()*pace)
	c.counted = now
	if len(c.responses) > 0 {
		o := c.responses[0]
		c.responses = slices.Delete(c.responses, 0, 1)
		return o, 0
	}
	if len(c.requests) == 0 || c.dialled && c.waiting() {
		return nil, time.Hour
	}
	if c.tokens <= 0 {
		return nil, time.Duration((1-c.tokens)/pace*float64(time.Second)) + time.Millisecond
	}
	o := c.requests[0]
	c.requests = slices.Delete(c.requests, 0, 1)
	return o, 0
}

// waiting reports whether the first message has been sent and nothing has come back, so that the other end may be of any
// kind.
func (c *conn) waiting() bool { return !c.isProved() && len(c.pending) > 0 }

func (c *conn) isProved() bool {
	select {
	case <-c.proved:
		return true
	default:
		return false
	}
}

// write writes what is queued, until the connection ends.
func (c *conn) write() {
	for {
		o, wait := c.next()
		if o != nil {
			if err := c.send(o); err != nil {
				c.fail(err)
				return
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.wake:
		case <-timer.C:
		case <-c.over:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// send puts one message into its container and writes it. This is the only place that writes to an original, and check
// decides whether it does. The error is that of the connection; what may not be sent is counted and left out.
func (c *conn) send(o *outgoing) error {
	m := Message{Type: o.kind, Response: o.answers != nil, Features: mark, Sender: c.g.ref().ID, Data: o.data}
	if o.as != nil {
		m.Sender = o.as.ID
	}
	if m.Response {
		m.RequestSequence, m.RequestChecksum = o.answers.sequence, o.answers.checksum
	}
	err := check(m, c.standing())
	if err != nil && o.fallback != nil {
		m.Data = o.fallback
		err = check(m, c.standing())
	}
	if err != nil {
		c.g.withhold(c, m, err)
		if o.call != nil {
			c.g.mu.Lock()
			o.call.finish(Message{}, fmt.Errorf("%s to %s: %w", o.kind, c.remote, err))
			c.g.mu.Unlock()
		}
		return nil
	}

	c.g.mu.Lock()
	if c.err != nil {
		c.g.mu.Unlock()
		return c.err
	}
	m.Sequence = c.sequence
	c.sequence++
	if m.Response {
		delete(c.asked, m.RequestSequence)
	} else {
		c.pending[m.Sequence] = o.call
		o.call.sent = time.Now()
	}
	b := AppendMessage(nil, m)
	c.tokens -= float64(len(b))
	c.g.stats.Sent++
	c.g.mu.Unlock()

	_ = c.nc.SetWriteDeadline(time.Now().Add(writeTimeout + time.Duration(len(b))*time.Second/readPace))
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("%s to %s: %w", m.Type, c.remote, err)
	}
	if o.call != nil {
		close(o.call.written)
	} else if m.Type == Info {
		c.g.mu.Lock()
		c.interest = time.Now()
		c.g.mu.Unlock()
	}
	return nil
}

// read takes what comes in until the connection ends.
func (c *conn) read(ctx context.Context, owned *sync.WaitGroup, first *Message) error {
	busy := make(chan struct{}, maxHandlers)
	in := io.Reader(c.nc)
	if first != nil {
		if err := c.take(ctx, owned, busy, *first); err != nil {
			return fmt.Errorf("%s: %w", c.remote, err)
		}
	} else {
		// Whoever was dialled says with the first byte of its answer what it is.
		var start [1]byte
		_ = c.nc.SetReadDeadline(time.Now().Add(firstTimeout))
		if _, err := io.ReadFull(in, start[:]); err != nil {
			return fmt.Errorf("%s: %w", c.remote, err)
		}
		if start[0] == hello[0] {
			return c.greeted(in)
		}
		in = io.MultiReader(bytes.NewReader(start[:]), in)
	}
	for {
		m, err := c.g.readMessage(c.nc, in)
		if err == nil {
			err = c.take(ctx, owned, busy, m)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.remote, err)
		}
		_ = c.nc.SetReadDeadline(time.Time{})
	}
}

// greeted reads the rest of the greeting with which a native member answers.
func (c *conn) greeted(in io.Reader) error {
	rest := make([]byte, len(hello)-1)
	if _, err := io.ReadFull(in, rest); err != nil {
		return fmt.Errorf("%s: %w", c.remote, err)
	}
	if string(rest) != hello[1:] {
		return fmt.Errorf("%s: %w: begins with %q", c.remote, ErrMessage, hello[:1]+string(rest))
	}
	c.g.mu.Lock()
	c.native = true
	c.g.mu.Unlock()
	return fmt.Errorf("%s: %w", c.remote, ErrNative)
}

// prove notes that a message has come: an original is at the other end, and may be sent more than one.
func (c *conn) prove() {
	if c.isProved() {
		return
	}
	close(c.proved)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// readMessage reads one message. Room is made as it comes, not by the length that it promises, and all large messages
// that are on their way together get no more than Options.Memory.
func (g *Gateway) readMessage(nc net.Conn, in io.Reader) (Message, error) {
	b := make([]byte, HeadSize, 512)
	if _, err := io.ReadFull(in, b); err != nil {
		return Message{}, err
	}
	size, err := MessageSize(b)
	if err != nil {
		return Message{}, err
	}
	if size > chunk {
		if g.memory.Add(int64(size)) > int64(g.o.Memory) {
			g.memory.Add(-int64(size))
			return Message{}, fmt.Errorf("%w: no room for %d bytes", ErrMessage, size)
		}
		defer g.memory.Add(-int64(size))
	}
	for len(b) < size {
		_ = nc.SetReadDeadline(time.Now().Add(chunkTimeout))
		n := min(chunk, size-len(b))
		b = slices.Grow(b, n)
		if _, err := io.ReadFull(in, b[len(b):len(b)+n]); err != nil {
			return Message{}, err
		}
		b = b[:len(b)+n]
	}
	return DecodeMessage(b)
}

// take handles one message: answers go to who waits for them, requests to the gateway. The error ends the connection.
func (c *conn) take(ctx context.Context, owned *sync.WaitGroup, busy chan struct{}, m Message) error {
	if m.Type < Join || m.Type > Lookup {
		return fmt.Errorf("%w: %s", ErrMessage, m.Type)
	}
	c.g.heard(c, m)
	c.prove()
	if m.Response {
		return c.answered(m)
	}
	in := &incoming{kind: m.Type, sequence: m.Sequence, checksum: m.Checksum}
	c.g.mu.Lock()
	if c.asked[m.Sequence] != nil || len(c.asked) >= maxPending {
		c.g.mu.Unlock()
		return fmt.Errorf("%w: request %d again, or too many", ErrMessage, m.Sequence)
	}
	if c.err == nil {
		c.asked[m.Sequence] = in
	}
	c.g.mu.Unlock()

	work, err := c.g.serve(ctx, c, m, in)
	if err != nil || work == nil {
		return err
	}
	select {
	case busy <- struct{}{}:
	case <-c.over:
		return net.ErrClosed
	}
	owned.Go(func() {
		defer func() { <-busy }()
		work()
	})
	return nil
}

func (c *conn) answered(m Message) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	q := c.pending[m.RequestSequence]
	if q == nil || q.kind != m.Type {
		c.g.stats.Strays++
		if c.strays++; c.strays > maxStrays {
			return fmt.Errorf("%w: answers to nothing", ErrMessage)
		}
		return nil
	}
	delete(c.pending, m.RequestSequence)
	if c.peer != nil && !q.given {
		c.peer.rtt = time.Since(q.sent)
	}
	q.finish(m, nil)
	return nil
}
