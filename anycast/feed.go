// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// maxUntaken is how many targets of a feed wait for their turn before it has to: enough for the rate of any fleet until the feed
// is asked again, and little beside what is remembered of each target.
const maxUntaken = 16 * maxBlock

// feed takes targets as they come, until there are no more. Those of a call are shuffled, so that a list that is sorted does not probe one network
// after the other.
func (s *sweep) feed(ctx context.Context) error {
	r := s.run
	f := newFilter(&r.def, r.Done, r.origins)
	got := 0
	defer func() { // before pump's caller goes on
		r.summary.Targets = got
		if len(f.skipped) > 0 {
			r.summary.Skipped = f.skipped
		}
	}()
	for {
		more, err := r.Feed(ctx)
		got += len(more)
		r.rng.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
		for len(more) > 0 {
			n := min(len(more), maxBlock)
			if err := s.append(ctx, f, more[:n]); err != nil {
				return err
			}
			more = more[n:]
		}
		switch {
		case errors.Is(err, io.EOF):
			s.mu.Lock()
			s.feeding = false
			s.mu.Unlock()
			s.signal()
			return nil
		case err != nil:
			return err
		}
	}
}

// append adds targets behind the others, when there is room.
func (s *sweep) append(ctx context.Context, f *filter, targets []Target) error {
	s.mu.Lock()
	for len(s.targets.addrs)-s.taken >= maxUntaken {
		s.mu.Unlock()
		select {
		case <-s.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		s.mu.Lock()
	}
	defer s.signal()
	defer s.mu.Unlock()
	for i := range targets {
		a := targets[i].Addr.Unmap()
		switch {
		case !a.IsValid() && targets[i].Name != "":
			f.skipped[SkipUnresolved]++
		case !f.takes(a):
		case (len(s.targets.addrs)+1)*s.numbers > maxProbes:
			return &FieldError{Field: "targets", Value: len(s.targets.addrs), Reason: fmt.Sprintf("up to %d probes in one run: split it", maxProbes)}
		case !s.targets.add(a):
			f.skipped[SkipDuplicate]++
		}
	}
	return nil
}
