// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Agent is what runs at a site. Make one with [New].
type Agent struct {
	opts        Options
	log         *slog.Logger
	incarnation uint64
	plane       *plane
	links       []*link

	mu      sync.Mutex // guards what follows
	cancel  context.CancelFunc
	ended   chan struct{} // of Run; nil before it
	closed  bool
	metrics *collector
}

// New opens the sockets: afterwards privileges may be dropped. Errors: [ErrOptions], [ErrPermission], those of the system.
func New(o Options) (*Agent, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Spool == 0 {
		o.Spool = DefaultSpool
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Host == nil {
		o.Host = func() (rawio.Host, error) { return rawio.NewHost() }
	}
	host, err := o.Host()
	if err != nil {
		return nil, fmt.Errorf("open agent: %w", err)
	}
	var random [8]byte
	rand.Read(random[:]) // never fails
	a := &Agent{opts: o, log: o.Log, incarnation: binary.BigEndian.Uint64(random[:])}
	if a.plane, err = newPlane(host, &o); err != nil {
		host.Close()
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: %w", ErrPermission, err)
		}
		return nil, fmt.Errorf("open agent: %w", err)
	}
	for i := range o.Links {
		a.links = append(a.links, newLink(a, i))
	}
	a.plane.links = a.links
	if o.Metrics != nil {
		a.metrics = &collector{agent: a}
		if err := o.Metrics.Register(a.metrics); err != nil {
			host.Close()
			return nil, fmt.Errorf("open agent: register metrics: %w", err)
		}
	}
	return a, nil
}

// Run works until ctx ends, which is no error, or the sockets fail. Then the agent is closed. It can be called once.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	if a.closed || a.ended != nil {
		a.mu.Unlock()
		return fmt.Errorf("run agent: %w", net.ErrClosed)
	}
	a.cancel, a.ended = cancel, make(chan struct{})
	a.mu.Unlock()

	var group sync.WaitGroup
	var failure error
	group.Go(func() {
		failure = a.plane.run()
		cancel()
	})
	for _, l := range a.links {
		group.Go(func() { l.run(ctx) })
	}
	<-ctx.Done()
	a.plane.stop()
	group.Wait()
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.unregister()
	close(a.ended)
	if failure != nil {
		return fmt.Errorf("run agent: %w", failure)
	}
	return nil
}

// Close ends Run and waits for it, or closes the sockets if there was none. It is idempotent.
func (a *Agent) Close() error {
	a.mu.Lock()
	if ended := a.ended; ended != nil {
		a.cancel()
		a.mu.Unlock()
		<-ended
		return nil
	}
	first := !a.closed
	a.closed = true
	a.mu.Unlock()
	if !first {
		return nil
	}
	a.unregister()
	return a.plane.host.Close()
}

func (a *Agent) unregister() {
	if a.metrics != nil {
		a.opts.Metrics.Unregister(a.metrics)
	}
}

// Stats is what an agent has done so far.
type Stats struct {
	// Sent counts probes, Framed those of them that left in frames, Refused those that the system did not take.
	Sent, Framed, Refused uint64
	// Received counts packets that passed the kernel's filter, and the next five what became of them: answers to
	// probes of open sessions, packets given to Voltadomar's controllers, packets with a session's port but
	// not its proof, packets that concern nobody, and broken ones. A packet of the second kind that
	// came before its session is one of the first, too.
	Received, Recognised, Forwarded, Forged, Stray, Malformed uint64
	// Overrun counts arrivals that found the kernel's receive queue full.
	Overrun uint64
	// Sessions are open, or still listening for late answers; Orders wait to be sent.
	Sessions, Orders int
	Links            []LinkStats
}

// LinkStats is how things stand with one controller.
type LinkStats struct {
	Address string
	// Dialect is the one spoken, or tried last.
	Dialect Dialect
	// Connected tells that the controller has welcomed the agent, or for Voltadomar's, which says nothing, that
	// it was registered; Since is when that last changed.
	Connected bool
	Since     time.Time
	// Connects counts connections that got so far.
	Connects uint64
	// Spooled is how many bytes are kept until they are acknowledged. Dropped counts answers that found no room.
	Spooled int
	Dropped uint64
	// Invalid counts messages of the controller that made no sense.
	Invalid uint64
}

// Stats gives the present state. It may be called at any time.
func (a *Agent) Stats() Stats {
	s := a.plane.stats()
	for _, l := range a.links {
		s.Links = append(s.Links, l.stats())
	}
	return s
}
