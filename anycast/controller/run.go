// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

// How results travel from a program to the store, and from there to those who follow.
const (
	// maxChunk is how many results are told at a time.
	maxChunk = 1024
	// maxUnstored is how many results wait for the store before the program has to.
	maxUnstored = 64 * maxChunk
	// recentChunks is how many stored chunks stay in memory for those who follow closely; the store has them for the others.
	recentChunks = 16
	// storeEvery is how long a result waits for others to be stored with.
	storeEvery = 100 * time.Millisecond
)

// Why a measurement ends before its program does.
var (
	errCancelled = errors.New("cancelled")
	errLeft      = errors.New("cancelled: the one who asked for it left")
)

// run is a measurement that is not over, or that could not be kept.
//
// A program puts what it finds into it (as its Sink), a writer takes it to the store, and whoever follows
// reads what is stored: from memory if it is recent, from the store if not. So nobody who follows can hold up a
// measurement, whatever their link, and nobody misses a result or gets one twice.
type run struct {
	store   anycast.Store
	ctx     context.Context // of the program
	cancel  context.CancelCauseFunc
	targets []anycast.Target
	feed    anycast.Feed  // in place of targets; may be nil
	prior   *prior        // what a resumed catchment had found; nil otherwise
	ended   chan struct{} // closed when it is over and kept, or cannot be
	wake    chan struct{} // holds an element when the writer has something to do

	mu       sync.Mutex
	m        anycast.Measurement
	unstored []anycast.Result
	room     *sync.Cond         // unstored became shorter, or failure was set
	recent   [][]anycast.Result // stored last
	stored   int                // results in the store
	failure  error              // of the store
	over     bool               // no more will come
	changed  chan struct{}      // closed at the next change
}

func newRun(ctx context.Context, store anycast.Store, m anycast.Measurement, targets []anycast.Target) *run {
	r := &run{
		store: store, targets: targets, m: m,
		ended: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	r.room = sync.NewCond(&r.mu)
	return r
}

var _ anycast.Sink = (*run)(nil)

// Results keeps results. It waits while too many wait for the store, and fails when the store does.
func (r *run) Results(results []anycast.Result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.unstored) >= maxUnstored && r.failure == nil {
		r.room.Wait()
	}
	if r.failure != nil {
		return r.failure
	}
	for _, result := range results {
		if s, ok := result.(*anycast.Summary); ok {
			if r.resumesLocked() {
				continue // the end is yet to come
			}
			r.prior.addTo(s)
			r.m.Progress.Sent, r.m.Progress.Answered = s.Sent, s.Answered
			if r.feed != nil {
				r.m.Targets = s.Targets
			}
		}
		r.unstored = append(r.unstored, result)
	}
	if len(r.unstored) >= maxChunk {
		r.nudge()
	}
	return nil
}

// Progress tells how far the program is.
func (r *run) Progress(p anycast.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prior.addToProgress(&p)
	r.m.Progress = p
	r.tellLocked()
}

func (r *run) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *run) tellLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// write takes results to the store until the program has ended. An error of the store ends the program.
func (r *run) write(ctx context.Context, programEnded <-chan struct{}) {
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-r.wake:
		case <-tick.C:
		case <-programEnded:
			last = true
		}
		for r.writeBatch(ctx) {
		}
	}
}

// writeBatch stores some results, and only then tells them: whoever follows, and comes back after a crash, counts on what was
// told to be there, in the same order. It is false when there are none left, or the store failed.
func (r *run) writeBatch(ctx context.Context) bool {
	r.mu.Lock()
	n := min(len(r.unstored), recentChunks*maxChunk)
	batch := slices.Clone(r.unstored[:n])
	id, failed := r.m.ID, r.failure != nil
	r.mu.Unlock()
	if n == 0 || failed {
		return false
	}
	err := r.store.Append(ctx, id, batch)
	if err == nil {
		err = r.store.Flush(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failLocked(fmt.Errorf("%w: %w", errStore, err))
		return false
	}
	r.unstored = slices.Delete(r.unstored, 0, n)
	if len(r.unstored) == 0 && cap(r.unstored) > 4*maxChunk {
		r.unstored = nil
	}
	r.stored += n
	r.recent = slices.AppendSeq(r.recent, slices.Chunk(batch, maxChunk))
	if extra := len(r.recent) - recentChunks; extra > 0 {
		r.recent = slices.Delete(r.recent, 0, extra)
	}
	r.room.Broadcast()
	r.tellLocked()
	return true
}

func (r *run) failLocked(err error) {
	r.failure = err
	r.unstored = nil
	r.room.Broadcast()
	r.cancel(err)
}

// resumesLocked tells that the program ends because the controller does, and will go on with the next one.
func (r *run) resumesLocked() bool {
	return errors.Is(context.Cause(r.ctx), errStopping) && resumable(&r.m.Definition)
}

// end notes how the measurement ended.
func (r *run) end(state anycast.State, err error, now time.Time) anycast.Measurement {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m.State, r.m.End = state, now
	r.m.Progress.Left = 0
	if state == anycast.Done {
		if r.m.Progress.Total == 0 { // of a feed
			r.m.Progress.Total = r.m.Targets
		}
		r.m.Progress.Done = r.m.Progress.Total
	}
	if err != nil {
		r.m.Error = err.Error()
	}
	r.over = true
	r.tellLocked()
	return r.m
}

// snapshot is the measurement now.
func (r *run) snapshot() anycast.Measurement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m
}

// view is what somebody who follows sees at one moment.
type view struct {
	m       anycast.Measurement
	stored  int              // results there are
	results []anycast.Result // from the position asked for on, if they are recent
	older   bool             // they are not: the store has them
	over    bool             //
	changed <-chan struct{}  // closed when there is more to see
}

// since looks at the measurement from the result numbered pos on.
func (r *run) since(pos int) view {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := view{m: r.m, stored: r.stored, over: r.over, changed: r.changed}
	first := r.stored
	for _, chunk := range r.recent {
		first -= len(chunk)
	}
	if pos < first {
		v.older = true
		return v
	}
	for _, chunk := range r.recent {
		if pos < first+len(chunk) {
			v.results = chunk[pos-first:]
			return v
		}
		first += len(chunk)
	}
	return v
}
