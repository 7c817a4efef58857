// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import "github.com/seed5728abee/fathom/relay/datagram"

// maxBacklog is how many bytes of frames wait in a backlog. More stay in the kernel's ring.
const maxBacklog = 4 << 20

// idleBacklog is how much of its memory an empty backlog keeps.
const idleBacklog = 1 << 18

// A backlog holds frames between the kernel's ring and the decision on them. A ring's slots are each as long as the
// longest frame; here a frame takes what it is long, so that a burst needs little memory.
type backlog struct {
	data []byte
	list []queued
	head int
}

type queued struct {
	start, end int
	capture    datagram.Capture
	outgoing   bool
}

// full tells that nothing more should be put in.
func (b *backlog) full() bool { return len(b.data) >= maxBacklog }

func (b *backlog) empty() bool { return b.head == len(b.list) }

// put copies a frame, behind the room that an SS datagram needs in front.
func (b *backlog) put(ethernet []byte, capture datagram.Capture, outgoing bool) {
	start := len(b.data)
	b.data = append(append(b.data, 'S', 'S'), ethernet...)
	b.list = append(b.list, queued{start, len(b.data), capture, outgoing})
}

// take fills frames with those that have waited longest. They are valid until the next put or take.
func (b *backlog) take(frames []frame) int {
	if b.empty() {
		b.reset()
		return 0
	}
	// What was taken makes room once it is more than what is left, so that each byte is moved once at most.
	if gone := b.list[b.head].start; gone > 0 && gone > len(b.data)-gone {
		b.data = b.data[:copy(b.data, b.data[gone:])]
		b.list = b.list[:copy(b.list, b.list[b.head:])]
		for i := range b.list {
			b.list[i].start -= gone
			b.list[i].end -= gone
		}
		b.head = 0
	}
	n := min(len(frames), len(b.list)-b.head)
	for i, q := range b.list[b.head : b.head+n] {
		frames[i] = frame{ss: b.data[q.start:q.end:q.end], capture: q.capture, outgoing: q.outgoing}
	}
	b.head += n
	return n
}

func (b *backlog) reset() {
	if cap(b.data) > idleBacklog {
		b.data, b.list = nil, nil
	}
	b.data, b.list, b.head = b.data[:0], b.list[:0], 0
}
