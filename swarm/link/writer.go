// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
)

const (
	// batchBytes is how much goes to the connection at a time.
	batchBytes = 4 * blockSize

	// A direction goes on to its next key after that many bytes or that long, whichever comes first.
	rekeyBytes = 256 << 20
	rekeyTime  = 10 * time.Minute
)

type outBuffer [4 * (lengthSize + blockSize + tagSize)]byte

var outBuffers = sync.Pool{New: func() any { return new(outBuffer) }}

// kick sees to it that there is a writer. It is called with mu locked, after something was queued.
//
// The writer is a goroutine that ends when there is nothing left: an idle link does not pay for its stack, and
// while it gets going more is queued, which then shares its record and system call.
func (s *Session) kick() {
	if s.writing || s.err != nil {
		return
	}
	s.writing = true
	s.wg.Add(1)
	go s.write()
}

func (s *Session) write() {
	defer s.wg.Done()
	out := outBuffers.Get().(*outBuffer)
	defer outBuffers.Put(out)
	for {
		some, last := s.collect()
		if !some {
			return
		}
		if err := s.writeBatch(out[:0]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				s.end(fmt.Errorf("%w: it took nothing for %v", ErrTimeout, 2*s.config.KeepAlive))
			} else {
				s.end(fmt.Errorf("%w: %w", ErrBroken, err))
			}
			return
		}
		if last {
			// The other side closes the connection when it has read the goodbye. If we did, what it has just sent
			// would be answered by a reset, which can overtake the goodbye.
			return
		}
	}
}

// collect moves what is to be written next into the batch, and tells whether there is some: if not, the writer has to
// return, for another one may be there already. last is the goodbye, which nothing follows.
func (s *Session) collect() (some, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch := s.send.batch[:0]
	if s.err == nil {
		s.acknowledge()
		if s.returned > 0 {
			s.urgent.add(&frame{kind: kindCredit, number: uint64(s.returned)})
			s.returned = 0
		}
		batch = s.urgent.take(batch, math.MaxInt)
		batch = s.messages.take(batch, batchBytes)
		// Streams get their turn, however many messages there are.
		have := 0
		for _, b := range batch {
			have += b.n
		}
		batch = s.streams.take(batch, max(batchBytes, have+1))
		s.callers.wake()
		s.repliers.wake()
		s.messages.waiters.wake()
		s.streams.waiters.wake()
		if len(batch) == 0 && s.closing != nil {
			last = true
			s.said.Store(true)
			b := newBlock()
			b.n = len(appendFrame(b.data[:0], &s.goodbye))
			batch = append(batch, b)
		}
	}
	s.send.batch = batch
	if len(batch) == 0 {
		s.writing = false
	}
	return len(batch) > 0, last
}

// acknowledge queues what messages were delivered. It is called with mu locked.
func (s *Session) acknowledge() {
	if s.taken > 0 {
		s.urgent.add(&frame{kind: kindAcked, number: s.taken})
		s.taken = 0
	}
}

func (s *Session) writeBatch(out []byte) error {
	w := &s.send
	now := time.Now()
	if patience := 2 * s.config.KeepAlive; patience > 0 && now.Sub(w.patient) > patience/8 {
		// Not each time, as it costs a timer. A connection that knows no deadlines is ended by tick.
		w.patient = now
		_ = s.conn.SetWriteDeadline(now.Add(patience))
	}
	if w.bytes >= rekeyBytes || now.Sub(w.rekeyed) >= rekeyTime {
		out = w.seal(out, appendFrame(nil, &frame{kind: kindRekey}))
		w.rekey()
		w.bytes, w.rekeyed = 0, now
		s.counters.rekeys.Add(1)
		s.counters.recordsSent.Add(1)
	}
	s.counters.recordsSent.Add(uint64(len(w.batch)))
	for i, b := range w.batch {
		if cap(out)-len(out) < lengthSize+b.n+tagSize {
			if err := s.writeOut(out); err != nil {
				return err
			}
			out = out[:0]
		}
		out = w.seal(out, b.data[:b.n])
		w.batch[i] = nil
		blocks.Put(b)
	}
	return s.writeOut(out)
}

func (s *Session) writeOut(out []byte) error {
	s.send.bytes += uint64(len(out))
	s.counters.bytesSent.Add(uint64(len(out)))
	_, err := s.conn.Write(out)
	return err
}
