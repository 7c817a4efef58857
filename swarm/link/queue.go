// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import "sync"

// blockSize is the most plaintext that goes into one record. Larger ones are not faster; they make what is urgent wait
// longer, and need more memory at both ends.
const blockSize = 32 << 10

// maxSmall is the longest body that goes in one frame; longer ones go like streams, in turns.
const maxSmall = blockSize - frameOverhead

// A block holds frames that will be one record.
type block struct {
	n    int
	data [blockSize]byte
}

var blocks = sync.Pool{New: func() any { return new(block) }}

func newBlock() *block {
	b := blocks.Get().(*block)
	b.n = 0
	return b
}

// A queue holds the frames of one priority that wait for the writer, and those who wait for room in it.
type queue struct {
	blocks  []*block
	bytes   int
	waiters waitList
}

func (q *queue) add(f *frame) {
	var last *block
	if n := len(q.blocks); n > 0 {
		last = q.blocks[n-1]
	}
	if last == nil || len(last.data)-last.n < frameOverhead+len(f.body) {
		last = newBlock()
		q.blocks = append(q.blocks, last)
	}
	n := len(appendFrame(last.data[:last.n], f))
	q.bytes += n - last.n
	last.n = n
}

// take moves the first blocks to the end of batch, until there is none left or that has at least limit bytes.
func (q *queue) take(batch []*block, limit int) []*block {
	n, have := 0, 0
	for _, b := range batch {
		have += b.n
	}
	for n < len(q.blocks) && have < limit {
		b := q.blocks[n]
		have += b.n
		q.bytes -= b.n
		n++
	}
	batch = append(batch, q.blocks[:n]...)
	rest := copy(q.blocks, q.blocks[n:])
	clear(q.blocks[rest:])
	if q.blocks = q.blocks[:rest]; rest == 0 && cap(q.blocks) > 8 {
		q.blocks = nil
	}
	return batch
}

// A waiter is one goroutine that waits for something of a session.
type waiter struct {
	ready      chan struct{} // capacity 1
	err        error         // of a message: the outcome
	prev, next *waiter
}

// waitersKept is how many waiters a link keeps to use them again.
const waitersKept = 64

// newWaiter is called with mu locked. Waiters are kept by link and not in a pool for all, as channels cannot wander
// between the bubbles of testing/synctest.
func (s *Session) newWaiter() *waiter {
	w := s.idle
	if w == nil {
		return &waiter{ready: make(chan struct{}, 1)}
	}
	s.idle, w.next = w.next, nil
	s.idles--
	return w
}

// free gives back a waiter that nobody will wake any more. It is called with mu locked.
func (s *Session) free(w *waiter) {
	select {
	case <-w.ready:
	default:
	}
	w.err = nil
	if s.idles < waitersKept {
		w.next = s.idle
		s.idle = w
		s.idles++
	}
}

func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// A waitList is a queue of waiters: who came first goes on first.
type waitList struct{ first, last *waiter }

func (l *waitList) push(w *waiter) {
	w.prev, w.next = l.last, nil
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
}

func (l *waitList) remove(w *waiter) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
}

// wake lets the first look again.
func (l *waitList) wake() {
	if l.first != nil {
		l.first.wake()
	}
}
