// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import "github.com/seed5728abee/fathom/relay/datagram"

const (
	// chunkSize is how many bytes of frames stand together. A frame that is longer has a chunk of its own.
	chunkSize = 32 << 10
	// maxChunks is how much waits in a backlog, 2 MB, or 12,800 broadcasts of 100 bytes. More stays in the kernel's ring.
	maxChunks = 64
	// spareChunks is how many chunks a backlog keeps for what comes next.
	spareChunks = 4
)

// A backlog holds frames between the kernel's ring and the decision on them. A ring's slots are each as long as the
// longest frame; here a frame takes what it is long, so that a burst needs little memory.
type backlog struct {
	chunks []*chunk // those that wait, the oldest first
	spare  []*chunk
}

// chunk is some frames one after the other.
type chunk struct {
	data []byte
	list []queued
	head int // of list: what was taken
}

type queued struct {
	start, end int32
	capture    datagram.Capture
	outgoing   bool
}

// full tells that nothing more should be put in.
func (b *backlog) full() bool { return len(b.chunks) >= maxChunks }

func (b *backlog) empty() bool { return len(b.chunks) == 0 }

// put copies a frame, behind the room that an SS datagram needs in front.
func (b *backlog) put(ethernet []byte, capture datagram.Capture, outgoing bool) {
	n := ssRoom + len(ethernet)
	var c *chunk
	if k := len(b.chunks); k > 0 && cap(b.chunks[k-1].data)-len(b.chunks[k-1].data) >= n {
		c = b.chunks[k-1]
	} else {
		c = b.newChunk(n)
		b.chunks = append(b.chunks, c)
	}
	start := len(c.data)
	c.data = append(append(c.data, 'S', 'S'), ethernet...)
	c.list = append(c.list, queued{int32(start), int32(len(c.data)), capture, outgoing})
}

func (b *backlog) newChunk(n int) *chunk {
	if k := len(b.spare); k > 0 && n <= chunkSize {
		c := b.spare[k-1]
		b.spare = b.spare[:k-1]
		return c
	}
	return &chunk{data: make([]byte, 0, max(n, chunkSize))}
}

// take fills frames with some of those that have waited longest. They are valid until the next put or take.
func (b *backlog) take(frames []frame) int {
	if b.empty() {
		return 0
	}
	c := b.chunks[0]
	n := min(len(frames), len(c.list)-c.head)
	for i, q := range c.list[c.head : c.head+n] {
		frames[i] = frame{ss: c.data[q.start:q.end:q.end], capture: q.capture, outgoing: q.outgoing}
	}
	c.head += n
	if c.head == len(c.list) {
		b.chunks = b.chunks[:copy(b.chunks, b.chunks[1:])]
		b.recycle(c)
	}
	return n
}

// recycle makes a chunk ready for what comes next. What was taken from it stays as it is until then.
func (b *backlog) recycle(c *chunk) {
	if len(b.spare) < spareChunks && cap(c.data) == chunkSize {
		c.data, c.list, c.head = c.data[:0], c.list[:0], 0
		b.spare = append(b.spare, c)
	}
}
