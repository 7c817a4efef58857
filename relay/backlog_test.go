// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/seed5728abee/fathom/relay/datagram"
)

// What goes in comes out: in order, whole, with what the kernel said about it, and with room for "SS" in front.
func TestBacklogOrder(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	var b backlog
	var frames [batchSize]frame
	put, taken := uint32(0), uint32(0)
	content := func(n uint32) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), bytes.Repeat([]byte{byte(n)}, int(n*37%1500))...)
	}
	for step := range 1000 {
		if step%400 < 100 || rng.IntN(2) == 0 { // now and then it grows
			for range rng.IntN(80) {
				b.put(content(put), datagram.Capture{Partial: put%3 == 0, Tagged: put%5 == 0}, put%7 == 0)
				put++
			}
		}
		n := b.take(frames[:1+rng.IntN(batchSize)])
		for _, f := range frames[:n] {
			want := append([]byte("SS"), content(taken)...)
			if !bytes.Equal(f.ss, want) {
				t.Fatalf("seed %d, frame %d: got %x, want %x", seed, taken, f.ss, want)
			}
			if f.capture != (datagram.Capture{Partial: taken%3 == 0, Tagged: taken%5 == 0}) || f.outgoing != (taken%7 == 0) {
				t.Fatalf("seed %d, frame %d: %+v", seed, taken, f)
			}
			if cap(f.ss) != len(f.ss) {
				t.Fatalf("frame %d can be appended to, over the next one", taken)
			}
			taken++
		}
		if n == 0 && put != taken {
			t.Fatalf("seed %d: %d of %d frames are not given out", seed, put-taken, put)
		}
	}
	for n := b.take(frames[:]); n > 0; n = b.take(frames[:]) {
		taken += uint32(n)
	}
	if put != taken || !b.empty() {
		t.Errorf("%d in, %d out, empty %v", put, taken, b.empty())
	}
}

// size is how much memory a backlog has.
func (b *backlog) size() (n int) {
	for _, list := range [][]*chunk{b.chunks, b.spare} {
		for _, c := range list {
			n += cap(c.data)
		}
	}
	return n
}

// What was taken is not kept while more comes in all the time, and an empty backlog gives back what a burst took.
func TestBacklogMemory(t *testing.T) {
	var b backlog
	var frames [batchSize]frame
	one := make([]byte, 1000)
	take := func(n int) {
		for n > 0 && !b.empty() {
			n -= b.take(frames[:min(n, batchSize)])
		}
	}
	for range 100 {
		b.put(one, datagram.Capture{}, false)
	}
	for range 2000 { // it never gets empty
		for range batchSize {
			b.put(one, datagram.Capture{}, false)
		}
		take(batchSize)
	}
	if n := b.size(); n > 1<<19 {
		t.Errorf("%d bytes are kept for 100 frames", n)
	}
	for !b.full() {
		b.put(one, datagram.Capture{}, false)
	}
	if n := b.size(); n > (maxChunks+spareChunks)*chunkSize {
		t.Errorf("full at %d bytes only", n)
	}
	long := make([]byte, 2*chunkSize)
	b.put(long, datagram.Capture{}, false)
	take(1 << 20)
	if n := b.size(); n > spareChunks*chunkSize {
		t.Errorf("an empty backlog keeps %d bytes", n)
	}
}
