// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"net"
	"os"
	"sync"
	"time"
)

// An inbox holds messages until somebody fetches them: bounded in number and bytes, first in, first out. What does not
// fit is refused, so that it is the sender who learns that nobody reads.
type inbox struct {
	maxLength, maxBytes int

	mu     sync.Mutex
	queue  []Message // a ring of power-of-two length
	head   int
	length int
	bytes  int
	closed bool

	// ready has room for one: whoever adds leaves a token, whoever takes it and leaves messages behind puts it back.
	ready chan struct{}
	space chan struct{} // in the same way for those who wait for room
	done  chan struct{}
}

func newInbox(maxLength, maxBytes int) *inbox {
	return &inbox{maxLength: maxLength, maxBytes: maxBytes, ready: make(chan struct{}, 1), space: make(chan struct{}, 1), done: make(chan struct{})}
}

// wait appends a message as soon as there is room, and reports whether there was within a time.
func (b *inbox) wait(m Message, patience time.Duration) bool {
	if b.add(m) {
		return true
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-b.space:
			if b.add(m) {
				return true
			}
		case <-timer.C:
			return false
		case <-b.done:
			return false
		}
	}
}

// add appends a message and reports whether there was room.
func (b *inbox) add(m Message) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.length == b.maxLength || b.length > 0 && b.bytes+len(m.Data) > b.maxBytes {
		return false
	}
	if b.length == len(b.queue) {
		grown := make([]Message, max(16, 2*len(b.queue)))
		n := copy(grown, b.queue[b.head:])
		copy(grown[n:], b.queue[:b.head])
		b.queue, b.head = grown, 0
	}
	b.queue[(b.head+b.length)&(len(b.queue)-1)] = m
	b.length++
	b.bytes += len(m.Data)
	signal(b.ready)
	if b.length < b.maxLength && b.bytes < b.maxBytes {
		signal(b.space) // there may be others
	}
	return true
}

// signal leaves a token unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take removes the first message, waiting for one until ctx ends or the deadline has passed (a nil channel: never).
func (b *inbox) take(ctx context.Context, deadline <-chan struct{}) (Message, error) {
	for {
		if m, ok := b.tryTake(); ok {
			return m, nil
		}
		select {
		case <-b.ready:
		case <-b.done:
			if m, ok := b.tryTake(); ok {
				return m, nil
			}
			return Message{}, net.ErrClosed
		case <-ctx.Done():
			return Message{}, context.Cause(ctx)
		case <-deadline:
			return Message{}, os.ErrDeadlineExceeded
		}
	}
}

func (b *inbox) tryTake() (Message, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.length == 0 {
		return Message{}, false
	}
	m := b.queue[b.head]
	b.queue[b.head] = Message{}
	b.head = (b.head + 1) & (len(b.queue) - 1)
	b.length--
	b.bytes -= len(m.Data)
	signal(b.space)
	if b.length > 0 {
		signal(b.ready)
	} else if len(b.queue) > keptQueue {
		b.queue, b.head = nil, 0 // a burst is over: give its room back
	}
	return m, true
}

// keptQueue is the room kept for messages in quiet times: 1024 of them are some 100 kB.
const keptQueue = 1024

func (b *inbox) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.length
}

// close ends all waiting. What is queued can still be fetched.
func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.done)
	}
}

// A deadline is a point in time that can be moved while others wait for it, as net.Conn wants it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

func newDeadline() *deadline { return &deadline{done: make(chan struct{})} }

// set moves the deadline. The zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // the timer has fired, or is about to close the channel
	}
	d.timer = nil
	select {
	case <-d.done:
		d.done = make(chan struct{})
	default:
	}
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		close(d.done)
	default:
		done := d.done
		d.timer = time.AfterFunc(wait, func() { close(done) })
	}
}

// wait returns a channel that is closed when the deadline passes.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// context returns a context that ends with os.ErrDeadlineExceeded when the deadline passes.
func (d *deadline) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	done := d.wait()
	stop := make(chan struct{})
	go func() {
		select {
		case <-done:
			cancel(os.ErrDeadlineExceeded)
		case <-stop:
		}
	}()
	return ctx, func() {
		close(stop)
		cancel(context.Canceled)
	}
}
