// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim

import (
	"sync"
	"time"
)

// deadline is a channel that closes at a time that can be changed.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	// A new channel: who waits for the old one is not to be woken by the old time.
	// A waiter looks again when the old one closes, so it is closed.
	if d.passed != nil {
		select {
		case <-d.passed:
		default:
			close(d.passed)
		}
	}
	passed := make(chan struct{})
	d.passed = passed
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(passed)
		return
	}
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.passed == passed {
			close(passed)
		}
	})
}

// wait gives the channel that closes when the deadline passes or is changed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.passed == nil {
		d.passed = make(chan struct{})
	}
	return d.passed
}

// over tells whether the deadline of a channel from wait has passed, rather than been changed.
func (d *deadline) over(c <-chan struct{}) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.passed != c {
		return false
	}
	select {
	case <-d.passed:
		return true
	default:
		return false
	}
}
