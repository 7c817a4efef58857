// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"sync"
)

// An ack is what to do when a message is acknowledged: call done, or wake w.
type ack struct {
	done func(error)
	w    *waiter
}

func (a ack) finish(err error) {
	if a.done != nil {
		a.done(err)
		return
	}
	a.w.err = err
	a.w.wake()
}

// A ring is a queue of acks.
type ring struct {
	acks  []ack // the length is a power of two
	first int
	count int
}

// ringKept is how many acks a ring keeps room for when it is empty.
const ringKept = 8

func (r *ring) push(a ack) {
	if r.count == len(r.acks) {
		grown := make([]ack, max(ringKept, 2*len(r.acks)))
		n := copy(grown, r.acks[r.first:])
		copy(grown[n:], r.acks[:r.first])
		r.acks, r.first = grown, 0
	}
	r.acks[(r.first+r.count)&(len(r.acks)-1)] = a
	r.count++
}

// pop moves the first n to the end of to.
func (r *ring) pop(to []ack, n int) []ack {
	for range n {
		to = append(to, r.acks[r.first])
		r.acks[r.first] = ack{}
		r.first = (r.first + 1) & (len(r.acks) - 1)
	}
	if r.count -= n; r.count == 0 && len(r.acks) > ringKept {
		*r = ring{}
	}
	return to
}

// Send hands over a message and waits until the other side has taken it. An error that wraps [ErrRefused] has the text
// of its Handler; after any other the message may have arrived or not.
func (s *Session) Send(ctx context.Context, payload []byte) error {
	s.mu.Lock()
	w := s.newWaiter()
	s.mu.Unlock()
	err := s.post(ctx, payload, ack{w: w})
	if err == nil {
		select {
		case <-w.ready:
			err = w.err
		case <-ctx.Done():
			return context.Cause(ctx) // the waiter will still be woken
		}
	}
	s.mu.Lock()
	s.free(w)
	s.mu.Unlock()
	return err
}

// Post is Send without waiting for the acknowledgement: it returns when the message is queued, with payload free to be used
// again, and calls done with what Send would return. That takes no longer than the window and the queue are full, but for
// a message of more than 32 KiB, which is on its way by then. When Post returns an error, done is not called.
//
// done is called from the goroutine that reads the link: it must not wait for anything, least of all for the same
// session. Messages arrive in the order in which they are posted, but for those of more than 32 KiB, which others
// may overtake.
func (s *Session) Post(ctx context.Context, payload []byte, done func(error)) error {
	return s.post(ctx, payload, ack{done: done})
}

func (s *Session) post(ctx context.Context, payload []byte, a ack) error {
	if err := s.fits(len(payload)); err != nil {
		return err
	}
	if len(payload) > maxSmall {
		n := weight(len(payload))
		if err := s.acquire(ctx, forMessage, n); err != nil {
			return err
		}
		err := s.sendLarge(ctx, forMessage, 0, payload, func(err error) {
			s.release(forMessage, n)
			a.finish(err)
		})
		if err != nil {
			s.release(forMessage, n)
			return err
		}
		s.counters.messagesSent.Add(1)
		return nil
	}
	cost := len(payload) + messageOverhead
	s.mu.Lock()
	room := func() bool { return s.credit >= cost && s.messages.bytes < messagesQueue }
	if err := s.wait(&s.messages.waiters, room, ctx.Done(), nil); err != nil {
		s.mu.Unlock()
		return canceled(ctx, err)
	}
	s.credit -= cost
	s.messages.add(&frame{kind: kindMessage, body: payload})
	s.pending.push(a)
	s.kick()
	s.messages.waiters.wake()
	s.mu.Unlock()
	s.counters.messagesSent.Add(1)
	return nil
}

func (s *Session) onAcked(f *frame) error {
	s.mu.Lock()
	if f.number > uint64(s.pending.count) {
		s.mu.Unlock()
		return fmt.Errorf("%w: %d messages acknowledged, of %d", ErrProtocol, f.number, s.pending.count)
	}
	s.acks = s.pending.pop(s.acks[:0], int(f.number))
	s.mu.Unlock()
	s.finishAcks(nil)
	return nil
}

func (s *Session) onNacked(f *frame) error {
	s.mu.Lock()
	if s.pending.count == 0 {
		s.mu.Unlock()
		return fmt.Errorf("%w: a message refused that was not sent", ErrProtocol)
	}
	s.acks = s.pending.pop(s.acks[:0], 1)
	s.mu.Unlock()
	s.finishAcks(refusal(f.body))
	return nil
}

func refusal(reason []byte) error {
	return fmt.Errorf("%w: %q", ErrRefused, reason[:min(len(reason), maxReason)])
}

func (s *Session) finishAcks(err error) {
	for i, a := range s.acks {
		s.acks[i] = ack{}
		a.finish(err)
	}
	if cap(s.acks) > ringKept && s.pendingEmpty() {
		s.acks = nil
	}
}

func (s *Session) pendingEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending.count == 0
}

// failMessages tells the senders of all messages under way that the link is over. Nothing is added any more.
func (s *Session) failMessages() {
	s.mu.Lock()
	err := s.err
	table := s.table
	s.table = nil
	s.acks = s.pending.pop(s.acks[:0], s.pending.count)
	s.mu.Unlock()
	s.finishAcks(err)
	for _, e := range table {
		if e.out != nil && e.out.complete {
			e.out.finish(err)
		}
	}
}

// An inbox holds the messages that came in, for the goroutine that hands them on.
type inbox struct {
	mu      sync.Mutex
	items   []item
	data    []byte // payloads of the small ones, one after the other
	running bool
	window  window
}

type item struct {
	size int    // of a small one
	id   uint64 // of a large one
	body []byte
}

func (s *Session) onMessage(f *frame) error {
	in := &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.window.receive(len(f.body) + messageOverhead) {
		return fmt.Errorf("%w: messages beyond the window", ErrProtocol)
	}
	in.data = append(in.data, f.body...)
	s.enqueue(item{size: len(f.body)})
	return nil
}

// enqueue is called by the reader with the inbox locked.
func (s *Session) enqueue(i item) {
	s.in.items = append(s.in.items, i)
	if !s.in.running {
		s.in.running = true
		s.wg.Add(1)
		go s.deliver()
	}
}

// deliver hands on messages until there are none left.
func (s *Session) deliver() {
	defer s.wg.Done()
	in := &s.in
	var items []item
	var data []byte
	for {
		in.mu.Lock()
		if len(in.items) == 0 {
			in.running = false
			if cap(in.data) > smallBuffer {
				in.items, in.data = nil, nil
			}
			in.mu.Unlock()
			return
		}
		items, in.items = in.items, items[:0]
		data, in.data = in.data, data[:0]
		in.mu.Unlock()
		rest := data
		for n, i := range items {
			items[n] = item{}
			if i.id != 0 {
				s.deliverLarge(i)
				continue
			}
			s.deliverSmall(rest[:i.size:i.size])
			rest = rest[i.size:]
		}
	}
}

func (s *Session) deliverSmall(payload []byte) {
	err := s.config.Handler.Message(s, payload)
	s.counters.messagesReceived.Add(1)
	s.in.mu.Lock()
	credit := s.in.window.consume(len(payload)+messageOverhead, s.RTT())
	s.in.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned += credit
	if err != nil {
		s.acknowledge()
		s.control(&frame{kind: kindNacked, body: reasonBytes(err.Error())})
		return
	}
	s.taken++
	s.kick()
}

func (s *Session) deliverLarge(i item) {
	err := s.config.Handler.Message(s, i.body)
	s.counters.messagesReceived.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[forMessage] -= held(len(i.body))
	messageBodies.Put(&i.body)
	if err != nil {
		s.control(&frame{kind: kindEnd, id: i.id, code: endAborted, body: reasonBytes(err.Error())})
		return
	}
	s.control(&frame{kind: kindAccept, id: i.id})
}
