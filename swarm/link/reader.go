// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// smallBuffer is what an idle link keeps for what may come: keep-alives and small messages fit.
	smallBuffer = 512
	// largeBuffer is what it takes to receive more, for as long as that goes on.
	largeBuffer = 128 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// read is the goroutine that a link has for all of its life.
func (s *Session) read() {
	defer s.wg.Done()
	err := s.readRecords()
	if errors.Is(err, ErrProtocol) {
		s.leave(err, CodeViolation, err.Error(), false)
		// Until the other side hangs up, or time is up: see write.
		for rest, b := error(nil), make([]byte, smallBuffer); rest == nil; {
			_, rest = s.conn.Read(b)
		}
	}
	s.end(err)
	s.failMessages()
}

func (s *Session) readRecords() error {
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	buffer, from, to := small, 0, 0
	var failed error // of the connection; what came with it still counts
	for {
		if s.said.Load() {
			from, to = 0, 0
		}
		n, err := recordLength(buffer[from:to])
		if err != nil {
			return err
		}
		if n > 0 && n <= to-from {
			if err := s.record(buffer[from : from+n]); err != nil {
				return err
			}
			from += n
			continue
		}
		if failed != nil {
			return fmt.Errorf("%w: %w", ErrBroken, failed)
		}
		// More has to come. What there is of a record goes to the front; an idle link needs no large buffer.
		more := to == len(buffer) || n > len(buffer)
		rest := buffer[from:to]
		switch {
		case large == nil && more:
			large = largeBuffers.Get().(*[largeBuffer]byte)
			buffer = large[:]
		case large != nil && len(rest) == 0 && !more:
			largeBuffers.Put(large)
			large, buffer = nil, small
		}
		from, to = 0, copy(buffer, rest)
		n, failed = s.conn.Read(buffer[to:])
		if failed == io.EOF {
			failed = io.ErrUnexpectedEOF
		}
		to += n
		s.counters.bytesReceived.Add(uint64(n))
	}
}

// record takes in one record.
func (s *Session) record(b []byte) error {
	text, err := s.recv.open(b)
	if err != nil {
		return err
	}
	s.counters.recordsReceived.Add(1)
	s.heard.Store(int64(time.Since(s.began)))
	var f frame
	for len(text) > 0 {
		if text, err = decodeFrame(&f, text); err != nil {
			return err
		}
		if err := s.frame(&f); err != nil {
			return err
		}
		if f.kind == kindRekey {
			if len(text) > 0 {
				return fmt.Errorf("%w: something after a rekey", ErrProtocol)
			}
			s.recv.rekey()
			s.counters.rekeys.Add(1)
		}
	}
	return nil
}

// frame takes in one frame. It never waits for anybody. An error ends the link.
func (s *Session) frame(f *frame) error {
	switch f.kind {
	case kindMessage:
		return s.onMessage(f)
	case kindAcked:
		return s.onAcked(f)
	case kindNacked:
		return s.onNacked(f)
	case kindData:
		return s.onData(f)
	case kindCredit:
		return s.onCredit(f)
	case kindRequest:
		return s.onRequest(f)
	case kindAnswer, kindFailed:
		return s.onAnswer(f)
	case kindCast:
		s.onCast(f)
		return nil
	case kindOpen:
		return s.onOpen(f)
	case kindAccept:
		return s.onAccept(f)
	case kindEnd:
		return s.onEnd(f)
	case kindPing:
		s.mu.Lock()
		s.control(&frame{kind: kindPong, number: f.number})
		s.mu.Unlock()
		return nil
	case kindPong:
		return s.onPong(f)
	case kindRekey:
		return nil
	case kindGoodbye:
		return goodbyeOf(f)
	default:
		return fmt.Errorf("%w: %s at this time", ErrProtocol, f.kind)
	}
}
