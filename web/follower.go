// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

const (
	// maxFollowed bounds the measurements of which sums are kept, and maxKept the networks in those that nobody looks at.
	maxFollowed = 16
	maxKept     = 4 << 20
	// patience is how long an answer about a running measurement waits for what was found so far.
	patience = 2 * time.Second
	// idleAfter is how long a running measurement is followed when nobody has asked about it.
	idleAfter = time.Minute
)

// follower sums up one measurement, for everybody who looks at it.
type follower struct {
	id     string
	cancel context.CancelFunc
	// over is closed when following has ended, caught when everything has been told that was found before it began.
	over, caught chan struct{}

	// Guarded by the handler's mutex.
	users int
	used  uint64
	idle  *time.Timer // nil while somebody looks, or when it is over

	mu      sync.Mutex // guards all following fields
	m       anycast.Measurement
	sum     *aggregate
	err     error
	changed chan struct{} // closed at the next change
}

// follow gives the follower of a measurement, which must be released. The measurement is known to be there.
func (h *Handler) follow(m anycast.Measurement) (*follower, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	h.clock++
	if f := h.followed[m.ID]; f != nil {
		f.users++
		f.used = h.clock
		if f.idle != nil {
			f.idle.Stop()
			f.idle = nil
		}
		return f, nil
	}
	if len(h.followed) >= maxFollowed && !h.forgetLocked() {
		return nil, errBusy
	}
	f := &follower{
		id: m.ID, over: make(chan struct{}), caught: make(chan struct{}), users: 1, used: h.clock,
		m: m, sum: newAggregate(), changed: make(chan struct{}),
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(h.ctx)
	h.followed[m.ID] = f
	h.wg.Go(func() { h.run(ctx, f) })
	return f, nil
}

// run follows until the measurement is over.
func (h *Handler) run(ctx context.Context, f *follower) {
	defer f.cancel()
	var caught sync.Once
	err := h.opts.Source.Follow(ctx, f.id, func(e Event) error {
		if e.Progress != nil || e.Measurement != nil && over(e.Measurement.State) {
			defer caught.Do(func() { close(f.caught) })
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.take(e)
		close(f.changed)
		f.changed = make(chan struct{})
		return nil
	})
	f.mu.Lock()
	f.err = err
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	caught.Do(func() { close(f.caught) })
	close(f.over)
	if err == nil {
		return
	}
	if ctx.Err() == nil && !errors.Is(err, anycast.ErrNoMeasurement) {
		h.log.Warn("cannot follow a measurement", "measurement", f.id, "err", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.followed[f.id] == f {
		delete(h.followed, f.id)
	}
}

// over tells whether a measurement of that state has come to an end.
func over(s anycast.State) bool { return s > anycast.Running }

// take counts an event.
func (f *follower) take(e Event) {
	if e.Measurement != nil {
		f.m = *e.Measurement
	}
	if e.Progress != nil {
		f.m.Progress = *e.Progress
	}
	for _, r := range e.Results {
		f.sum.add(r)
	}
}

// release ends a use.
func (h *Handler) release(f *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.users--; f.users > 0 || h.followed[f.id] != f {
		return
	}
	select {
	case <-f.over:
	default:
		f.idle = time.AfterFunc(idleAfter, func() { h.expire(f) })
	}
	for h.keptLocked() > maxKept && h.forgetLocked() {
	}
}

// expire stops following what nobody looks at.
func (h *Handler) expire(f *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.idle == nil || f.users > 0 || h.followed[f.id] != f {
		return
	}
	select {
	case <-f.over:
	default:
		f.cancel()
		delete(h.followed, f.id)
	}
}

// keptLocked counts the networks in the sums that nobody looks at.
func (h *Handler) keptLocked() int {
	n := 0
	for _, f := range h.followed {
		if f.users == 0 {
			f.mu.Lock()
			n += *f.sum.held
			f.mu.Unlock()
		}
	}
	return n
}

// forgetLocked drops the sums that nobody has looked at for the longest time.
func (h *Handler) forgetLocked() bool {
	var oldest *follower
	for _, f := range h.followed {
		if f.users == 0 && (oldest == nil || f.used < oldest.used) {
			oldest = f
		}
	}
	if oldest == nil {
		return false
	}
	if oldest.idle != nil {
		oldest.idle.Stop()
	}
	oldest.cancel()
	delete(h.followed, oldest.id)
	return true
}

// ready waits until the sums are complete, or, of a measurement that is running, have all that was found so far.
func (f *follower) ready(ctx context.Context) error {
	f.mu.Lock()
	running := !over(f.m.State)
	f.mu.Unlock()
	if running {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-f.caught:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.err
	}
	select {
	case <-f.over:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// look runs read with the measurement and its sums, while neither changes.
func (f *follower) look(read func(m *anycast.Measurement, a *aggregate)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	read(&f.m, f.sum)
}
