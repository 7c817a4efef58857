// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"sync/atomic"
	"time"
)

const (
	startWindow         = 64 << 10  // of a stream
	startMessagesWindow = 256 << 10 // of messages
	messageOverhead     = 64        // what a message takes of the window besides its payload: so empty ones are bounded too

	// growBelow is what a round trip counts at least when it is decided whether a window is too small: on a fast
	// path most of the time goes by in queues.
	growBelow = time.Millisecond
)

// A window is what the other side may still send of something, on the side that receives. It grows like that of
// quic-go: when half of it is used up within two round trips, it was the window that the sender waited for.
type window struct {
	size  int           // as it is now
	free  int           // what the other side may still send
	eaten int           // what was taken away and not yet given back to the other side
	since time.Time     // when something was given back last
	most  int           // how far it may grow
	extra *atomic.Int64 // what all windows of the link may still grow; nil: no matter
}

func newWindow(size, most int, extra *atomic.Int64) window {
	return window{size: size, free: size, most: most, extra: extra}
}

// receive accounts for n bytes that came in; false says that they were not allowed.
func (w *window) receive(n int) bool {
	if n > w.free {
		return false
	}
	if w.since.IsZero() {
		w.since = time.Now()
	}
	w.free -= n
	return true
}

// consume accounts for n bytes that were taken away, and returns the credit to give to the other side, mostly 0.
func (w *window) consume(n int, rtt time.Duration) (credit int) {
	if w.eaten += n; w.eaten < w.size/2 {
		return 0
	}
	now := time.Now()
	if fast := now.Sub(w.since) < 2*max(rtt, growBelow); fast && w.size < w.most {
		grow := min(w.size, w.most-w.size)
		if w.extra == nil || w.extra.Add(int64(-grow)) >= 0 {
			w.size += grow
			w.eaten += grow
		} else {
			w.extra.Add(int64(grow))
		}
	}
	w.since = now
	credit, w.eaten = w.eaten, 0
	w.free += credit
	return credit
}

// end gives back what the window has grown.
func (w *window) end(start int) {
	if w.extra != nil {
		w.extra.Add(int64(w.size - start))
	}
	w.extra = nil
	w.most = w.size
}
