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
// thousands of requests delays another's by one request, not by thousands. And none has all the places, so that
// one whose requests take an hour each delays nobody by an hour.
type admission struct {
	max           int // running
	maxClient     int // running of one client
	waitingClient int // bound per client
	waitingAll    int // bound in all

	mu      sync.Mutex
	running int
	waiting int
	clients map[string]*clientQueue // those with a request that runs or waits
	turns   []*clientQueue          // those with one that waits and may run, the next first
}

type clientQueue struct {
	client  string
	running int
	waiting []*admissionRequest
	inTurns bool
}

type admissionRequest struct {
	admitted chan struct{}
	gone     bool // gave up
}

func newAdmission(running, waiting int) *admission {
	return &admission{
		max: running, maxClient: max(1, running*3/4), waitingClient: waiting, waitingAll: 4 * waiting, clients: map[string]*clientQueue{},
	}
}

// enter waits for a place, which leave gives back. It fails with errBusy, or when ctx ends.
func (a *admission) enter(ctx context.Context, client string) error {
	a.mu.Lock()
	q := a.clients[client]
	if q == nil {
		q = &clientQueue{client: client}
	}
	if a.waiting >= a.waitingAll || len(q.waiting) >= a.waitingClient {
		defer a.mu.Unlock()
		return fmt.Errorf("%w: %d of this client, %d in all", errBusy, len(q.waiting), a.waiting)
	}
	a.clients[client] = q
	r := &admissionRequest{admitted: make(chan struct{})}
	q.waiting = append(q.waiting, r)
	a.waiting++
	a.queueLocked(q)
	a.nextLocked()
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
		a.leaveLocked(q)
	default:
		r.gone = true
	}
	return context.Cause(ctx)
}

// leave gives a place back.
func (a *admission) leave(client string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leaveLocked(a.clients[client])
}

func (a *admission) leaveLocked(q *clientQueue) {
	a.running--
	q.running--
	a.queueLocked(q)
	a.nextLocked()
}

// queueLocked gives a client its turn, if it is to have one, and forgets it if it has nothing here.
func (a *admission) queueLocked(q *clientQueue) {
	switch {
	case q.inTurns:
	case len(q.waiting) > 0 && q.running < a.maxClient:
		q.inTurns = true
		a.turns = append(a.turns, q)
	case len(q.waiting) == 0 && q.running == 0:
		delete(a.clients, q.client)
	}
}

func (a *admission) nextLocked() {
	for a.running < a.max && len(a.turns) > 0 {
		q := a.turns[0]
		a.turns = a.turns[1:]
		q.inTurns = false
		r := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		a.waiting--
		if !r.gone {
			a.running++
			q.running++
			close(r.admitted)
		}
		a.queueLocked(q)
	}
}

// load tells how many requests run and wait.
func (a *admission) load() (running, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running, a.waiting
}
