// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"
)

// What does not fit a frame goes in turns with the streams, so that nothing has to wait for the whole of it. There is no
// window: the other side has room for its limit of bodies, in bytes, for each purpose, and knows the length beforehand.

// An entry is what an ID stands for: one of these.
type entry struct {
	stream *Stream
	out    *outgoing
	in     *incoming
}

// An outgoing is a large message or cast that the other side has to acknowledge.
type outgoing struct {
	finish   func(error) // called from the reader, once
	complete bool        // all of it is queued; before that finish is not called
}

// An incoming is a large body of which more has to come.
type incoming struct {
	purpose uint8
	number  uint64 // of the request
	total   int
	body    []byte
}

// messageBodies are for large messages, whose payloads are only lent to the Handler.
var messageBodies sync.Pool

// add appends what came. Room is made as it comes and not as it is said to come.
func (in *incoming) add(data []byte) {
	if in.body == nil && in.purpose == forMessage {
		if body, ok := messageBodies.Get().(*[]byte); ok {
			in.body = (*body)[:0]
		}
	}
	if need := len(in.body) + len(data); need > cap(in.body) {
		grown := make([]byte, len(in.body), min(in.total, max(4*need, 8*blockSize)))
		copy(grown, in.body)
		in.body = grown
	}
	in.body = append(in.body, data...)
}

// weight is what a body takes of the budget: at least what would make it large, which bounds their number.
func weight(n int) int64 { return int64(held(n)) }

func held(n int) int { return max(n, blockSize) }

// fits tells whether the other side takes a body of n bytes.
func (s *Session) fits(n int) error {
	if uint64(n) > uint64(s.peer.limits.body) {
		return fmt.Errorf("%w: %d bytes, and the other side takes %d", ErrTooLarge, n, s.peer.limits.body)
	}
	return nil
}

// budget is what large bodies for one purpose may take of the other side's memory, in bytes.
func (s *Session) budget(purpose uint8) *semaphore.Weighted {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.budgets[purpose] == nil {
		s.budgets[purpose] = semaphore.NewWeighted(int64(s.peer.limits.body))
	}
	return s.budgets[purpose]
}

// acquire waits until the other side has room for n more bytes.
func (s *Session) acquire(ctx context.Context, purpose uint8, n int64) error {
	budget := s.budget(purpose)
	if budget.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	over := s.over()
	if over == nil {
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if over != nil {
		return over
	}
	go func() {
		defer s.wg.Done()
		select {
		case <-s.done:
			cancel(s.Err())
		case <-ctx.Done():
		}
	}()
	if budget.Acquire(ctx, n) != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (s *Session) release(purpose uint8, n int64) {
	if n > 0 {
		s.budget(purpose).Release(n)
	}
}

func (s *Session) streamRoom() bool { return s.streams.bytes < streamsQueue }

// sendLarge queues a large body, as fast as it goes. finish, if not nil, is called when the other side has acknowledged
// it or the link is over, unless sendLarge returns an error.
func (s *Session) sendLarge(ctx context.Context, purpose uint8, number uint64, body []byte, finish func(error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.wait(&s.streams.waiters, s.streamRoom, ctx.Done(), nil); err != nil {
		return canceled(ctx, err)
	}
	out := &outgoing{finish: finish}
	id := s.newID(entry{out: out})
	s.streams.add(&frame{kind: kindOpen, id: id, code: purpose, number: number, total: uint64(len(body))})
	for len(body) > 0 {
		if err := s.wait(&s.streams.waiters, s.streamRoom, ctx.Done(), nil); err != nil {
			if s.err == nil {
				delete(s.table, id)
				s.streams.add(&frame{kind: kindEnd, id: id, code: endAborted})
				s.kick()
			}
			return canceled(ctx, err)
		}
		n := min(len(body), maxSmall)
		s.streams.add(&frame{kind: kindData, id: id, body: body[:n]})
		s.kick()
		s.streams.waiters.wake()
		body = body[n:]
	}
	if out.complete = true; finish == nil {
		delete(s.table, id)
	}
	return nil
}

// newID makes an entry of this side. It is called with mu locked, and what opens it has to be queued before it is
// unlocked.
func (s *Session) newID(e entry) uint64 {
	id := s.nextOwn
	s.nextOwn += 2
	s.setEntry(id, e)
	return id
}

func (s *Session) setEntry(id uint64, e entry) {
	if s.table == nil {
		s.table = make(map[uint64]entry)
	}
	s.table[id] = e
}

// entryOf finds what an ID stands for, with mu locked. That may be nothing when it was ended on this side and the other
// one cannot know yet; what was never opened is an error.
func (s *Session) entryOf(f *frame) (entry, error) {
	e, ok := s.table[f.id]
	if !ok {
		next := s.nextPeer
		if f.id%2 == s.nextOwn%2 {
			next = s.nextOwn
		}
		if f.id == 0 || f.id >= next {
			return entry{}, fmt.Errorf("%w: %s for stream %d, which nobody opened", ErrProtocol, f.kind, f.id)
		}
	}
	return e, nil
}

func (s *Session) onOpen(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.id != s.nextPeer {
		return fmt.Errorf("%w: stream %d opened, not %d", ErrProtocol, f.id, s.nextPeer)
	}
	s.nextPeer += 2
	if s.err != nil {
		return s.err
	}
	if f.code == forApplication {
		return s.openedByPeer(f)
	}
	if f.code >= purposes || f.total == 0 || f.total > uint64(s.config.MaxBody) {
		return fmt.Errorf("%w: a body of %d bytes for purpose %d", ErrProtocol, f.total, f.code)
	}
	if s.held[f.code] += held(int(f.total)); s.held[f.code] > s.config.MaxBody {
		return fmt.Errorf("%w: more large bodies than agreed on", ErrProtocol)
	}
	switch f.code {
	case forRequest:
		if !s.beginRequest() {
			return fmt.Errorf("%w: more requests than agreed on", ErrProtocol)
		}
	case forAnswer:
		c := s.calls[f.number]
		if c == nil || c.answering {
			return fmt.Errorf("%w: an answer to no request", ErrProtocol)
		}
		c.answering = true
	}
	s.setEntry(f.id, entry{in: &incoming{purpose: f.code, number: f.number, total: int(f.total)}})
	return nil
}

func (s *Session) onData(f *frame) error {
	s.mu.Lock()
	e, err := s.entryOf(f)
	if e.stream != nil && e.stream.own {
		err = e.stream.acceptedByPeer()
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case e.stream != nil:
		return e.stream.receive(f.body)
	case e.out != nil:
		return fmt.Errorf("%w: data for stream %d, which only goes out", ErrProtocol, f.id)
	case e.in == nil:
		return nil
	}
	in := e.in
	if len(f.body) > in.total-len(in.body) {
		return fmt.Errorf("%w: a body of more than %d bytes", ErrProtocol, in.total)
	}
	in.add(f.body)
	if len(in.body) < in.total {
		return nil
	}
	return s.completed(f.id, in)
}

// completed takes in a large body that is whole.
func (s *Session) completed(id uint64, in *incoming) error {
	s.mu.Lock()
	delete(s.table, id)
	if in.purpose == forAnswer {
		s.held[forAnswer] -= held(in.total)
	}
	s.mu.Unlock()
	switch in.purpose {
	case forRequest:
		s.serve(&served{s: s, id: in.number, held: held(in.total)}, in.body)
	case forAnswer:
		if c := s.endCall(in.number); c != nil {
			c.answer = in.body
			close(c.done)
		}
	case forCast:
		s.cast(in.body, func() {
			s.mu.Lock()
			s.held[forCast] -= held(in.total)
			s.control(&frame{kind: kindAccept, id: id})
			s.mu.Unlock()
		})
	case forMessage:
		s.in.mu.Lock()
		s.enqueue(item{id: id, body: in.body})
		s.in.mu.Unlock()
	}
	return nil
}

func (s *Session) onCredit(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	credit, waiters := &s.credit, &s.messages.waiters
	if f.id != 0 {
		e, err := s.entryOf(f)
		if err != nil || e == (entry{}) {
			return err
		}
		if e.stream == nil {
			return fmt.Errorf("%w: credit for a body", ErrProtocol)
		}
		credit, waiters = &e.stream.credit, &e.stream.writers
	}
	if f.number > maxCredit || *credit+int(f.number) > maxCredit {
		return fmt.Errorf("%w: a credit of %d", ErrProtocol, f.number)
	}
	*credit += int(f.number)
	waiters.wake()
	return nil
}

// maxCredit is more than any window has.
const maxCredit = 1<<31 - 1

func (s *Session) onAccept(f *frame) error {
	s.mu.Lock()
	e, err := s.entryOf(f)
	if err == nil && e.out != nil && e.out.complete {
		delete(s.table, f.id)
	}
	if err == nil && e.stream != nil {
		err = e.stream.acceptedByPeer()
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case e.in != nil || e.out != nil && !e.out.complete:
		return fmt.Errorf("%w: stream %d accepted too early", ErrProtocol, f.id)
	case e.out != nil:
		e.out.finish(nil)
	}
	return nil
}

func (s *Session) onEnd(f *frame) error {
	if f.code > endAborted {
		return fmt.Errorf("%w: an end of kind %d", ErrProtocol, f.code)
	}
	s.mu.Lock()
	e, err := s.entryOf(f)
	if err != nil || e == (entry{}) {
		s.mu.Unlock()
		return err
	}
	if e.stream != nil {
		s.mu.Unlock()
		return e.stream.endedByPeer(f)
	}
	// Large bodies end by their length; before that they can only be given up, after that only be refused.
	if f.code != endAborted || e.out != nil && !e.out.complete {
		s.mu.Unlock()
		return fmt.Errorf("%w: a body ended too early", ErrProtocol)
	}
	delete(s.table, f.id)
	if e.in != nil {
		s.held[e.in.purpose] -= held(e.in.total)
		if e.in.purpose == forRequest {
			s.serving--
		}
	}
	s.mu.Unlock()
	switch {
	case e.out != nil:
		e.out.finish(refusal(f.body))
	case e.in.purpose == forAnswer:
		if c := s.endCall(e.in.number); c != nil {
			c.err = refusal(f.body)
			close(c.done)
		}
	}
	return nil
}
