// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
	"sync"
)

// ErrRange reports a range of session ids that cannot be: outside 1 to 65535, for session ids are UDP
// source ports, or without room for a single block.
var ErrRange = errors.New("impossible range of session ids")

// Blocks hands out the source ports of a controller's measurements, from a range that is cut into blocks of
// one size. Any number of goroutines may use it.
//
// Who needs a whole block, because an agent of an original will use ports behind the first as it likes,
// calls Allocate: the first port is the session id. Who knows how many ports it needs calls
// AllocatePorts, and shares a block with others of its kind, so that thousands of measurements fit
// where a hundred blocks do. Both search behind what they gave out last (next-fit): a late answer to an
// old measurement then finds its port still unused.
//
// An incomplete block at the range's end is never used.
type Blocks struct {
	start, size, n int // block i is the ports from start+i*size on; n of them

	mu     sync.Mutex
	next   int            // where Allocate's search begins
	blocks []block        // n of them
	free   int            // how many of blocks are free
	shared int            // how many of blocks are shared
	held   int            // ports given out
	runs   map[uint16]int // first port to number of ports, of what was given out
	cursor int            // the shared block that AllocatePorts last gave from
}

// block is given out whole, or shared, or free when no port of it is used.
type block struct {
	used   int // ports
	shared bool
	ports  []bool // which ports are used while it is shared; made when it first is
	rover  int    // where the search in a shared block begins; it outlives the sharing, to reuse ports late
}

// NewBlocks cuts the ports from start up to, without it, end into blocks of the given size. A
// range below 1 or above 65536, or smaller than one block, is ErrRange.
func NewBlocks(start, end, size int) (*Blocks, error) {
	switch {
	case start < 1 || end > 65536:
		return nil, fmt.Errorf("%w: %d-%d is not within 1-65536", ErrRange, start, end)
	case size < 1 || start >= end:
		return nil, fmt.Errorf("%w: %d-%d in blocks of %d is empty", ErrRange, start, end, size)
	case size > end-start:
		return nil, fmt.Errorf("%w: a block of %d does not fit into %d-%d", ErrRange, size, start, end)
	}
	n := (end - start) / size
	return &Blocks{start: start, size: size, n: n, blocks: make([]block, n), free: n, runs: map[uint16]int{}}, nil
}

// Len is the number of blocks.
func (b *Blocks) Len() int { return b.n }

// Size is the number of ports in a block.
func (b *Blocks) Size() int { return b.size }

// Ports are those of all blocks: the first, and how many there are.
func (b *Blocks) Ports() (first uint16, n int) { return uint16(b.start), b.n * b.size }

// Index tells which block a port is in, from 0 to Len()-1. It is false for a port outside all of them.
func (b *Blocks) Index(port uint16) (int, bool) {
	i := int(port) - b.start
	if i < 0 || i >= b.n*b.size {
		return 0, false
	}
	return i / b.size, true
}

// InUse is the number of ports that are given out.
func (b *Blocks) InUse() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// Allocate gives out a whole block and returns its first port, or ErrNoBlock.
func (b *Blocks) Allocate() (uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.takeFreeLocked()
	if !ok {
		return 0, ErrNoBlock
	}
	b.blocks[i].used = b.size
	return b.giveLocked(i, 0, b.size), nil
}

// AllocatePorts gives out n ports in a row, 1 to Size, and returns the first. When there is no such
// row it returns ErrNoBlock; other numbers are ErrRange.
func (b *Blocks) AllocatePorts(n int) (uint16, error) {
	if n < 1 || n > b.size {
		return 0, fmt.Errorf("%w: %d ports from a block of %d", ErrRange, n, b.size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()

	// Go on where the last one ended. Then a fresh block puts off the reuse of ports, but only up to half
	// of all: the others are for those who need a whole one, as long as the shared ones have room.
	if port, ok := b.takeLocked(b.cursor, n, false); ok {
		return port, nil
	}
	if b.shared < (b.n+1)/2 {
		if port, ok := b.openLocked(n); ok {
			return port, nil
		}
	}
	for i := 1; i <= b.n && b.n*b.size-b.held >= n; i++ {
		at := (b.cursor + i) % b.n
		if port, ok := b.takeLocked(at, n, true); ok {
			b.cursor = at
			return port, nil
		}
	}
	if port, ok := b.openLocked(n); ok {
		return port, nil
	}
	return 0, ErrNoBlock
}

// AllocatePort gives out one port, and no other, for who cannot do with another. It returns ErrNoBlock while that is in use, or in
// a block that is; a port outside all blocks is ErrRange.
func (b *Blocks) AllocatePort(port uint16) error {
	i, ok := b.Index(port)
	if !ok {
		return fmt.Errorf("%w: port %d is not within %d-%d", ErrRange, port, b.start, b.start+b.n*b.size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	blk := &b.blocks[i]
	if blk.used == 0 {
		b.free--
		b.shareLocked(blk)
	}
	offset := int(port) - b.start - i*b.size
	if !blk.shared || blk.ports[offset] {
		return ErrNoBlock
	}
	blk.ports[offset] = true
	blk.used++
	b.giveLocked(i, offset, 1)
	return nil
}

// Release gives back what Allocate, AllocatePorts or AllocatePort gave out. Anything else has no effect.
func (b *Blocks) Release(first uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.runs[first]
	if !ok {
		return
	}
	delete(b.runs, first)
	b.held -= n
	i, _ := b.Index(first)
	blk := &b.blocks[i]
	blk.used -= n
	if blk.shared {
		clear(blk.ports[int(first)-b.start-i*b.size:][:n])
	}
	if blk.used > 0 {
		return
	}
	b.free++
	if blk.shared {
		blk.shared = false
		b.shared--
	}
}

// takeFreeLocked takes the next free block from the free ones. The caller says what of it is used.
func (b *Blocks) takeFreeLocked() (int, bool) {
	if b.free == 0 {
		return 0, false
	}
	for b.blocks[b.next].used > 0 {
		b.next = (b.next + 1) % b.n
	}
	i := b.next
	b.next = (b.next + 1) % b.n
	b.free--
	return i, true
}

// openLocked makes the next free block a shared one and takes n of its ports.
func (b *Blocks) openLocked(n int) (uint16, bool) {
	i, ok := b.takeFreeLocked()
	if !ok {
		return 0, false
	}
	b.shareLocked(&b.blocks[i])
	b.cursor = i
	return b.takeLocked(i, n, true)
}

// shareLocked makes a free block a shared one.
func (b *Blocks) shareLocked(blk *block) {
	if blk.ports == nil {
		blk.ports = make([]bool, b.size)
	}
	blk.shared = true
	b.shared++
}

// takeLocked takes n ports of a shared block, behind those taken last; if wrap is true, also before them.
func (b *Blocks) takeLocked(i, n int, wrap bool) (uint16, bool) {
	blk := &b.blocks[i]
	if !blk.shared || b.size-blk.used < n {
		return 0, false
	}
	at, ok := freeRun(blk.ports, blk.rover, n)
	if !ok && wrap {
		at, ok = freeRun(blk.ports, 0, n)
	}
	if !ok {
		return 0, false
	}
	for p := at; p < at+n; p++ {
		blk.ports[p] = true
	}
	blk.used += n
	blk.rover = at + n
	return b.giveLocked(i, at, n), true
}

func (b *Blocks) giveLocked(i, offset, n int) uint16 {
	first := uint16(b.start + i*b.size + offset)
	b.runs[first] = n
	b.held += n
	return first
}

// freeRun finds n unused ports in a row, at the given one or behind it.
func freeRun(used []bool, from, n int) (int, bool) {
	for at := from; at+n <= len(used); {
		last := at + n - 1
		for last >= at && !used[last] {
			last--
		}
		if last < at {
			return at, true
		}
		at = last + 1
	}
	return 0, false
}
