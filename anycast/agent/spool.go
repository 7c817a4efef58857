// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"sync"

	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// spool keeps what a controller has not acknowledged yet: answers, and reports on orders. The plane adds, the
// link's writer takes, in the order of sequence numbers. A new connection starts with the oldest that is left.
//
//	items  [ on their way | sealed, not sent ]  open: the answers that still come together
//
// It is bounded: answers that find it full are dropped, before they have a number. Reports are kept, since a controller
// waits for each of them; their number is bounded by that of the orders, which come by a connection.
type spool struct {
	ready chan struct{} // capacity 1: there is something to take

	mu                 sync.Mutex // guards what follows
	limit              int        // bytes
	items              []item
	gone               int    // of items, at the front
	taken              int    // of items, on this connection
	busy               int    // of those, how many the writer is at: the last ones
	sent, acknowledged uint64 // the highest number that was given to a writer, and that came back
	size               int    // bytes of items and open
	open               *measurepb.Answers
	seq                uint64 // the last one given out
	away               bool   // drop answers
	dropped            uint64
	spare              []*measurepb.Answers
}

// item is something that has a sequence number.
type item struct {
	seq     uint64
	answers *measurepb.Answers // or
	report  *report
	size    int
}

const (
	// sealBytes and sealPackets bound the answers in one message: some hundred microseconds of a flood.
	sealBytes   = 60 << 10
	sealPackets = 1024
	// itemOverhead is what an item takes beside its content, in bytes.
	itemOverhead = 256
	// perAnswer is what an answer takes beside its packet, in bytes.
	perAnswer = 8 + 4
	// maxReports is how many bytes of reports there may be above the limit: those of all orders that a controller may have here.
	maxReports = 8 << 20
	// maxSpare is how many message buffers are kept for use again: what the writer and a quick controller hold.
	maxSpare = 16
	// maxTogether is how many bytes of items go into one message: enough for the cost of a message not to matter.
	maxTogether = 64 << 10
)

func newSpool(limit int) *spool {
	return &spool{ready: make(chan struct{}, 1), limit: limit}
}

// add keeps an answer. It does not wake the writer: see notify.
func (s *spool) add(time int64, pkt []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away || s.size+len(pkt)+perAnswer+itemOverhead > s.limit {
		s.dropped++
		return
	}
	a := s.open
	if a == nil {
		if n := len(s.spare); n > 0 {
			a, s.spare = s.spare[n-1], s.spare[:n-1]
		} else {
			a = new(measurepb.Answers)
		}
		s.open = a
		s.size += itemOverhead
	}
	a.Times = append(a.Times, time)
	a.Lengths = append(a.Lengths, uint32(len(pkt)))
	a.Packets = append(a.Packets, pkt...)
	s.size += len(pkt) + perAnswer
	if len(a.Packets) >= sealBytes || len(a.Times) >= sealPackets {
		s.sealLocked()
	}
}

// seal keeps the answers that come from now on from getting into one message with those before.
func (s *spool) seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealLocked()
}

// sealLocked gives the open answers a number.
func (s *spool) sealLocked() {
	if s.open == nil {
		return
	}
	s.seq++
	s.open.Seq = s.seq
	size := len(s.open.Packets) + len(s.open.Times)*perAnswer + itemOverhead
	s.items = append(s.items, item{seq: s.seq, answers: s.open, size: size})
	s.open = nil
}

// report keeps a report. It does not wake the writer, either.
func (s *spool) report(r *report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	size := itemOverhead + 8*len(r.times)
	s.items = append(s.items, item{seq: s.seq, report: r, size: size})
	s.size += size
}

// notify wakes the writer.
func (s *spool) notify() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// keptLocked is the items that are not acknowledged.
func (s *spool) keptLocked() []item { return s.items[s.gone:] }

// next appends to items what to send next, at most so many bytes of it but at least one item, if there is any. To call
// it again is to be done with what it gave before.
func (s *spool) next(items []item, most int) []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = 0
	s.forgetLocked()
	for size := 0; ; {
		if s.taken == len(s.keptLocked()) {
			s.sealLocked()
		}
		kept := s.keptLocked()
		if s.taken == len(kept) {
			return items
		}
		it := kept[s.taken]
		if size += it.size; s.busy > 0 && size > most {
			return items
		}
		items = append(items, it)
		s.taken++
		s.busy++
		s.sent = max(s.sent, it.seq)
	}
}

// acknowledge forgets everything up to a number, as far as it was sent: a controller that claims more is wrong, and gets the rest.
func (s *spool) acknowledge(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acknowledged = max(s.acknowledged, min(seq, s.sent))
	s.forgetLocked()
}

// forgetLocked drops what is acknowledged, but not from under the writer's hands.
func (s *spool) forgetLocked() {
	sent := s.taken - s.busy
	kept := s.keptLocked()
	n := 0
	for n < sent && kept[n].seq <= s.acknowledged {
		s.size -= kept[n].size
		if a := kept[n].answers; a != nil && len(s.spare) < maxSpare {
			a.Times, a.Lengths, a.Packets = a.Times[:0], a.Lengths[:0], a.Packets[:0]
			s.spare = append(s.spare, a)
		}
		kept[n] = item{}
		n++
	}
	s.taken -= n
	// The front of the memory is used again when that costs less than to have appended.
	if s.gone += n; 2*s.gone >= len(s.items) {
		s.items = slices.Delete(s.items, 0, s.gone)
		s.gone = 0
	}
}

// restart makes a new connection begin with the oldest item that the controller has not. The last connection's writer
// must have ended.
func (s *spool) restart(acknowledged uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = 0
	s.acknowledged = max(s.acknowledged, min(acknowledged, s.sent))
	kept := s.keptLocked()
	for s.taken = 0; s.taken < len(kept) && kept[s.taken].seq <= s.acknowledged; s.taken++ {
	}
	s.forgetLocked()
	s.taken = 0
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// reset forgets everything: the controller is another one.
func (s *spool) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items, s.gone, s.taken, s.busy, s.size, s.open = nil, 0, 0, 0, 0, nil
}

// overfull tells that a controller asks for reports without ever acknowledging them.
func (s *spool) overfull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size > 2*s.limit+maxReports
}

// setAway makes it drop answers, or keep them.
func (s *spool) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func (s *spool) stats() (size int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.dropped
}
