// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
)

// A call is a request of this side that is under way.
type call struct {
	done      chan struct{} // closed with answer or err
	answer    []byte
	err       error
	weight    int64 // of a large request, in the budget
	answering bool  // a large answer is on its way
}

// Call sends a request and waits for its answer. The request waits while Config.MaxRequests of the other side are under
// way; one that is given up still counts until it is answered. An error wraps [ErrRefused] when the other side
// could not answer.
func (s *Session) Call(ctx context.Context, body []byte) ([]byte, error) {
	if err := s.fits(len(body)); err != nil {
		return nil, err
	}
	c := &call{done: make(chan struct{})}
	large := len(body) > maxSmall
	if large {
		c.weight = weight(len(body))
		if err := s.acquire(ctx, forRequest, c.weight); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	room := func() bool {
		return len(s.calls) < int(s.peer.limits.requests) && s.urgent.bytes < urgentQueue
	}
	if err := s.wait(&s.callers, room, ctx.Done(), nil); err != nil {
		s.mu.Unlock()
		s.release(forRequest, c.weight)
		return nil, canceled(ctx, err)
	}
	if s.calls == nil {
		s.calls = make(map[uint64]*call)
	}
	s.nextCall++
	id := s.nextCall
	s.calls[id] = c
	if !large {
		s.urgent.add(&frame{kind: kindRequest, id: id, body: body})
		s.kick()
	}
	s.callers.wake()
	s.mu.Unlock()
	s.counters.requestsSent.Add(1)
	if large {
		if err := s.sendLarge(ctx, forRequest, id, body, nil); err != nil {
			s.endCall(id)
			return nil, err
		}
	}
	select {
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.done:
		return nil, s.Err()
	}
}

// endCall forgets a call, and returns it if it was not forgotten before.
func (s *Session) endCall(id uint64) *call {
	s.mu.Lock()
	c := s.calls[id]
	delete(s.calls, id)
	if len(s.calls) == 0 {
		s.calls = nil // maps do not shrink
	}
	s.callers.wake()
	s.mu.Unlock()
	if c != nil {
		s.release(forRequest, c.weight)
	}
	return c
}

func (s *Session) onAnswer(f *frame) error {
	c := s.endCall(f.id)
	if c == nil || c.answering {
		return fmt.Errorf("%w: an answer to no request", ErrProtocol)
	}
	if f.kind == kindFailed {
		c.err = fmt.Errorf("%w: %q", ErrRefused, f.body[:min(len(f.body), maxReason)])
	} else {
		c.answer = bytes.Clone(f.body)
	}
	close(c.done)
	return nil
}

// A served is a request of the other side that is under way.
type served struct {
	s       *Session
	id      uint64
	held    int // of a large request
	replied atomic.Bool
}

func (s *Session) onRequest(f *frame) error {
	s.mu.Lock()
	ok := s.beginRequest()
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: more requests than agreed on", ErrProtocol)
	}
	s.serve(&served{s: s, id: f.id}, bytes.Clone(f.body))
	return nil
}

// beginRequest counts a request that came in, with mu locked, and tells whether it was allowed.
func (s *Session) beginRequest() bool {
	s.serving++
	return s.serving <= s.config.MaxRequests
}

func (s *Session) serve(r *served, body []byte) {
	s.counters.requestsReceived.Add(1)
	s.wg.Go(func() { s.config.Handler.Request(s, body, r.reply) })
}

// reply sends the answer. What does not fit the other side is told to it instead.
func (r *served) reply(answer []byte) {
	s := r.s
	if r.replied.Swap(true) {
		return
	}
	if len(answer) > maxSmall && s.fits(len(answer)) == nil {
		r.replyLarge(answer)
		return
	}
	f := frame{kind: kindAnswer, id: r.id, body: answer}
	if len(answer) > maxSmall {
		f = frame{kind: kindFailed, id: r.id, body: []byte("the answer is too large")}
	}
	s.mu.Lock()
	// Not in the list of the calls: those wait for answers.
	if s.wait(&s.repliers, func() bool { return s.urgent.bytes < urgentQueue }, nil, nil) == nil || s.err == nil {
		s.urgent.add(&f)
		s.kick()
	}
	r.end()
	s.mu.Unlock()
}

// end makes room for another request, just before the other side can know. It is called with mu locked.
func (r *served) end() {
	r.s.serving--
	r.s.held[forRequest] -= r.held
}

func (r *served) replyLarge(answer []byte) {
	s, n := r.s, weight(len(answer))
	if s.acquire(context.Background(), forAnswer, n) != nil {
		return
	}
	s.mu.Lock()
	r.end()
	s.mu.Unlock()
	_ = s.sendLarge(context.Background(), forAnswer, r.id, answer, nil)
	s.release(forAnswer, n)
}

// Cast sends what is not answered. It never waits: when too much is queued or a large one is on its way, it is dropped
// and counted. body may be used again at once.
func (s *Session) Cast(body []byte) {
	if s.fits(len(body)) != nil {
		s.counters.castsDropped.Add(1)
		return
	}
	if len(body) > maxSmall {
		s.castLarge(body)
		return
	}
	s.mu.Lock()
	ok := s.over() == nil && s.urgent.bytes < urgentQueue
	if ok {
		s.urgent.add(&frame{kind: kindCast, body: body})
		s.kick()
	}
	s.mu.Unlock()
	s.countCast(ok)
}

func (s *Session) countCast(ok bool) {
	if ok {
		s.counters.castsSent.Add(1)
	} else {
		s.counters.castsDropped.Add(1)
	}
}

func (s *Session) castLarge(body []byte) {
	n := weight(len(body))
	ok := s.budget(forCast).TryAcquire(n)
	if ok {
		s.mu.Lock()
		if ok = s.over() == nil; ok {
			s.wg.Add(1)
		}
		s.mu.Unlock()
		if !ok {
			s.release(forCast, n)
		}
	}
	s.countCast(ok)
	if !ok {
		return
	}
	body = bytes.Clone(body)
	go func() {
		defer s.wg.Done()
		if err := s.sendLarge(context.Background(), forCast, 0, body, func(error) { s.release(forCast, n) }); err != nil {
			s.release(forCast, n)
		}
	}()
}

func (s *Session) onCast(f *frame) { s.cast(bytes.Clone(f.body), func() {}) }

// cast hands a cast to the handler, or drops it when there are too many; then is called afterwards in either case.
func (s *Session) cast(body []byte, then func()) {
	s.mu.Lock()
	ok := s.casts < s.config.MaxRequests
	if ok {
		s.casts++
	}
	s.mu.Unlock()
	s.counters.castsReceived.Add(1)
	if !ok {
		s.counters.castsDropped.Add(1)
		then()
		return
	}
	s.wg.Go(func() {
		s.config.Handler.Cast(s, body)
		s.mu.Lock()
		s.casts--
		s.mu.Unlock()
		then()
	})
}
