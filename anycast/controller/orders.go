// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"sync"
)

// errSlowLink ends the connection of an agent that takes its orders more slowly than they come.
var errSlowLink = errors.New("the agent does not take its orders")

// maxOrders bounds what waits to be written to one agent, in the weight of orders: about 64 bytes each unit, 64 MiB in all.
const maxOrders = 1 << 20

// orders is the queue of messages to one agent. Any goroutine may push; one writes.
type orders[T any] struct {
	wake chan struct{} // holds an element while there may be something to take

	mu     sync.Mutex
	list   []T
	spare  []T
	weight int
	closed bool
}

func newOrders[T any]() *orders[T] { return &orders[T]{wake: make(chan struct{}, 1)} }

// push adds messages of a weight. It is false when that is too much, or the queue is closed.
func (q *orders[T]) push(weight int, m ...T) bool {
	ok := q.add(weight, m...)
	if ok {
		q.nudge()
	}
	return ok
}

// add is push for what is in no hurry: it goes with what comes next, or when the writer is nudged.
func (q *orders[T]) add(weight int, m ...T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.weight+weight > maxOrders {
		return false
	}
	q.list = append(q.list, m...)
	q.weight += weight
	return true
}

// nudge makes the writer look.
func (q *orders[T]) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take gives what there is. It is valid until the next call.
func (q *orders[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.list
	clear(q.spare)
	q.list, q.spare = q.spare[:0], out
	q.weight = 0
	if cap(q.list) > 4096 { // a burst is no reason to keep its memory
		q.list = nil
	}
	return out
}

// close refuses what comes later.
func (q *orders[T]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.list, q.spare = nil, nil
}
