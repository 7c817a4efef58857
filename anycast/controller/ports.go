// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/volta"
)

// ports gives out source ports, and lets a bounded number of sessions wait for theirs.
type ports struct {
	blocks *volta.Blocks

	mu      sync.Mutex
	waiting []*portRequest // in the order of their coming
	fixed   []*portRequest // those that want one port and no other; they stand in nobody's way
}

type portRequest struct {
	n     int
	first uint16
	ready chan struct{} // closed when first is set
}

// maxPortRequests bounds who waits for ports. More than that will not get any in time.
const maxPortRequests = 4096

// allocate gives n ports in a row as soon as there are some. It fails with anycast.ErrNoPorts when ctx ends, at once
// if too many wait already.
func (p *ports) allocate(ctx context.Context, n int) (uint16, error) {
	p.mu.Lock()
	if len(p.waiting) == 0 {
		first, err := p.blocks.AllocatePorts(n)
		if !errors.Is(err, volta.ErrNoBlock) {
			p.mu.Unlock()
			return first, err
		}
	}
	if len(p.waiting) >= maxPortRequests {
		p.mu.Unlock()
		return 0, fmt.Errorf("%w: and %d sessions wait for some", anycast.ErrNoPorts, maxPortRequests)
	}
	r := &portRequest{n: n, ready: make(chan struct{})}
	p.waiting = append(p.waiting, r)
	p.mu.Unlock()

	select {
	case <-r.ready:
		return r.first, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.waiting {
		if other == r {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			p.serveLocked() // it may have stood in the way of smaller ones
			return 0, fmt.Errorf("%w: %w", anycast.ErrNoPorts, context.Cause(ctx))
		}
	}
	return r.first, nil // they came in the same moment
}

// allocateFixed gives one port as soon as it is free. It fails with volta.ErrRange if it is not the controller's, and with
// anycast.ErrNoPorts as allocate does.
func (p *ports) allocateFixed(ctx context.Context, port uint16) error {
	p.mu.Lock()
	if err := p.blocks.AllocatePort(port); !errors.Is(err, volta.ErrNoBlock) {
		p.mu.Unlock()
		return err
	}
	if len(p.fixed) >= maxPortRequests {
		p.mu.Unlock()
		return fmt.Errorf("%w: and %d sessions wait for some", anycast.ErrNoPorts, maxPortRequests)
	}
	r := &portRequest{first: port, ready: make(chan struct{})}
	p.fixed = append(p.fixed, r)
	p.mu.Unlock()

	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.fixed, r); i >= 0 {
		p.fixed = slices.Delete(p.fixed, i, i+1)
		return fmt.Errorf("port %d: %w: %w", port, anycast.ErrNoPorts, context.Cause(ctx))
	}
	return nil // it came in the same moment
}

// allocateBlock gives a whole block, or volta.ErrNoBlock at once: as the original does, and its clients expect.
func (p *ports) allocateBlock() (uint16, error) { return p.blocks.Allocate() }

func (p *ports) release(first uint16) {
	p.blocks.Release(first)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serveLocked()
}

func (p *ports) serveLocked() {
	p.fixed = slices.DeleteFunc(p.fixed, func(r *portRequest) bool {
		if p.blocks.AllocatePort(r.first) != nil {
			return false
		}
		close(r.ready)
		return true
	})
	for len(p.waiting) > 0 {
		r := p.waiting[0]
		first, err := p.blocks.AllocatePorts(r.n)
		if err != nil {
			return
		}
		r.first = first
		close(r.ready)
		p.waiting[0] = nil
		p.waiting = p.waiting[1:]
	}
}
