// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errBusy means that a client has more requests waiting than anybody should, or all clients together.
var errBusy = errors.New("too many requests wait")

// admission bounds how many requests run at once, and shares the places fairly: clients take turns, so one with
// thousands of requests delays another's by one request, not by thousands.
type admission struct {
	max           int // running
	waitingClient int // bound per client
	waitingAll    int // bound in all

	mu      sync.Mutex
	running int
	waiting int
	queues  map[string]*clientQueue
	turns   []*clientQueue // those with someone waiting, the next first
}

type clientQueue struct {
	client  string
	waiting []*admissionRequest
}

type admissionRequest struct {
	admitted chan struct{}
	gone     bool // gave up
}

func newAdmission(running, waiting int) *admission {
	return &admission{max: running, waitingClient: waiting, waitingAll: 4 * waiting, queues: map[string]*clientQueue{}}
}

// enter waits for a place, which leave gives back. It fails with errBusy, or when ctx ends.
func (a *admission) enter(ctx context.Context, client string) error {
	a.mu.Lock()
	if a.running < a.max && len(a.turns) == 0 {
		a.running++
		a.mu.Unlock()
		return nil
	}
	q := a.queues[client]
	if q == nil {
		q = &clientQueue{client: client}
	}
	if a.waiting >= a.waitingAll || len(q.waiting) >= a.waitingClient {
		a.mu.Unlock()
		return fmt.Errorf("%w: %d of this client, %d in all", errBusy, len(q.waiting), a.waiting)
	}
	if len(q.waiting) == 0 {
		a.queues[client] = q
		a.turns = append(a.turns, q)
	}
	r := &admissionRequest{admitted: make(chan struct{})}
	q.waiting = append(q.waiting, r)
	a.waiting++
	a.mu.Unlock()

	select {
	case <-r.admitted:
		return nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-r.admitted: // in the same moment
		a.running--
		a.nextLocked()
	default:
		r.gone = true
	}
	return context.Cause(ctx)
}

// leave gives a place back.
func (a *admission) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
	a.nextLocked()
}

func (a *admission) nextLocked() {
	for a.running < a.max && len(a.turns) > 0 {
		q := a.turns[0]
		a.turns = a.turns[1:]
		r := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		a.waiting--
		if len(q.waiting) > 0 {
			a.turns = append(a.turns, q)
		} else {
			delete(a.queues, q.client)
		}
		if r.gone {
			continue
		}
		a.running++
		close(r.admitted)
	}
}

// load tells how many requests run and wait.
func (a *admission) load() (running, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running, a.waiting
}
