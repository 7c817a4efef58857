// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// Frames in parts are put together within these bounds, for each peer. A relay sends the parts of
// a frame together, so that more than a few at a time means loss.
const (
	partTimeout   = 3 * time.Second
	maxAssemblies = 32
	maxAssembling = 512 << 10 // bytes
)

// An assembly is a frame of which parts are there.
type assembly struct {
	from       uint32 // whose frame it is, where several share one place
	partHeader        // of the first part that came; index has no meaning
	since      time.Time
	have       [(maxParts + 63) / 64]uint64
	missing    int
	data       []byte
}

// assemblies are the unfinished frames of one peer, oldest first.
type assemblies struct {
	open  []assembly
	bytes int
	spare []byte     // of a frame that is done with: a flood of first parts needs no new memory for each
	done  [16]uint64 // frames completed last, so that a part that the network doubled starts nothing
	turn  int
}

// add takes one part. It gives the frame when it was the last one missing, until the next call.
// lost counts unfinished frames that had to make room or were too old.
func (a *assemblies) add(from uint32, h partHeader, part []byte, now time.Time) (frame []byte, lost int, reason drop.Reason) {
	lost = a.expire(now)
	at := -1
	for i := range a.open {
		if a.open[i].frame == h.frame && a.open[i].from == from {
			at = i
			break
		}
	}
	if at < 0 {
		if slices.Contains(a.done[:], uint64(from)<<32|uint64(h.frame)) {
			return nil, lost, drop.Replayed
		}
		for len(a.open) > 0 && (len(a.open) == maxAssemblies || a.bytes+int(h.total) > maxAssembling) {
			a.remove(0)
			lost++
		}
		a.bytes += int(h.total)
		at = len(a.open)
		data := a.spare
		if a.spare = nil; cap(data) < int(h.total) {
			data = make([]byte, h.total)
		}
		a.open = append(a.open, assembly{from: from, partHeader: h, since: now, missing: h.count(), data: data[:h.total]})
	}
	s := &a.open[at]
	if s.total != h.total || s.size != h.size {
		return nil, lost, drop.Overlapping
	}
	word, bit := h.index/64, uint64(1)<<(h.index%64)
	if s.have[word]&bit != 0 {
		return nil, lost, drop.Replayed
	}
	s.have[word] |= bit
	copy(s.data[int(h.index)*int(h.size):], part)
	if s.missing--; s.missing > 0 {
		return nil, lost, drop.None
	}
	frame = s.data
	a.done[a.turn%len(a.done)] = uint64(from)<<32 | uint64(h.frame)
	a.turn++
	a.remove(at)
	return frame, lost, drop.None
}

func (a *assemblies) remove(i int) {
	s := &a.open[i]
	a.bytes -= int(s.total)
	if cap(s.data) > cap(a.spare) {
		a.spare = s.data
	}
	copy(a.open[i:], a.open[i+1:])
	a.open[len(a.open)-1] = assembly{}
	a.open = a.open[:len(a.open)-1]
}

// expire forgets frames that were not completed in time, and counts them.
func (a *assemblies) expire(now time.Time) (lost int) {
	for len(a.open) > 0 && now.Sub(a.open[0].since) >= partTimeout {
		a.remove(0)
		lost++
	}
	return lost
}

// tick is expire, and gives memory back when it is not in use.
func (a *assemblies) tick(now time.Time) (lost int) {
	lost = a.expire(now)
	if len(a.open) == 0 {
		a.open, a.spare = nil, nil
	}
	return lost
}
