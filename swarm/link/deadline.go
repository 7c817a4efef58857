// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"sync"
	"time"
)

// A deadline is a channel that is closed when a time has come, which may be changed while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{}
}

func newDeadline() deadline { return deadline{expired: make(chan struct{})} }

// set changes the time; zero means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	past := false
	select {
	case <-d.expired:
		past = true
	default:
	}
	left := time.Until(t)
	switch {
	case !t.IsZero() && left <= 0:
		if !past {
			close(d.expired)
		}
		return
	case past:
		d.expired = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // and not one that was set too late to stop this one
			close(d.expired)
			d.timer = nil
		}
	})
	d.timer = timer
}

// wait returns the channel to wait for.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
