// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import "time"

// scheduled is a frame that waits for its time.
type scheduled struct {
	at   time.Duration
	seq  uint64
	port int    // of a router; wires have one way out
	data []byte // from a bufferPool
}

// schedule holds frames by time, those of the same time in the order of their
// coming: a binary heap. container/heap would allocate for every push.
type schedule struct {
	items []scheduled
	seq   uint64
}

func (s *schedule) len() int { return len(s.items) }

func (s *schedule) less(i, j int) bool {
	a, b := &s.items[i], &s.items[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (s *schedule) push(f scheduled) {
	s.seq++
	f.seq = s.seq
	s.items = append(s.items, f)
	for i := len(s.items) - 1; i > 0; {
		parent := (i - 1) / 2
		if !s.less(i, parent) {
			break
		}
		s.items[i], s.items[parent] = s.items[parent], s.items[i]
		i = parent
	}
}

func (s *schedule) pop() scheduled {
	top := s.items[0]
	last := len(s.items) - 1
	s.items[0] = s.items[last]
	s.items[last] = scheduled{}
	s.items = s.items[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && s.less(child+1, child) {
			child++
		}
		if !s.less(child, i) {
			break
		}
		s.items[i], s.items[child] = s.items[child], s.items[i]
		i = child
	}
	return top
}

// bufferPool keeps frame buffers of two sizes for reuse: probes are small, and
// a wire may hold tens of thousands of them. It belongs to one goroutine.
type bufferPool struct {
	small, large [][]byte
}

const (
	smallBuffer = 256
	largeBuffer = 2048
	// maxPooled bounds what an idle engine keeps after a burst, per size.
	maxPooled = 8192
)

// get returns an empty buffer with room for n bytes.
func (p *bufferPool) get(n int) []byte {
	switch {
	case n <= smallBuffer:
		return take(&p.small, smallBuffer)
	case n <= largeBuffer:
		return take(&p.large, largeBuffer)
	}
	return make([]byte, 0, n)
}

func take(free *[][]byte, size int) []byte {
	if last := len(*free) - 1; last >= 0 {
		b := (*free)[last]
		*free = (*free)[:last]
		return b[:0]
	}
	return make([]byte, 0, size)
}

func (p *bufferPool) copy(data []byte) []byte { return append(p.get(len(data)), data...) }

// put takes back a buffer that get returned. Others, such as one that append
// has moved, are left to the garbage collector.
func (p *bufferPool) put(b []byte) {
	switch cap(b) {
	case smallBuffer:
		if len(p.small) < maxPooled {
			p.small = append(p.small, b)
		}
	case largeBuffer:
		if len(p.large) < maxPooled {
			p.large = append(p.large, b)
		}
	}
}
